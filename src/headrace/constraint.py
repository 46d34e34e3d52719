"""What an answer is held to: a constraint, the shape of tool calls, and what compiled grammars offer.

A `Constraint` is what was asked for. The grammar room compiles it, off the event loop and off the step loop, into a
`Grammar`; each sequence takes a `Matcher` of it, which says before every token which ones may come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct
from msgspec.structs import asdict

Kind = Literal["json_schema", "json_object", "regex", "choice", "lark", "ebnf", "structural_tag", "calls"]


class Constraint(Struct, frozen=True):
    """What the text of an answer must be: ``kind`` says how ``value`` is to be read.

    ``json_schema``: a schema as JSON text. ``json_object``: empty, any object. ``regex``: the whole text matches.
    ``choice``: a JSON list of texts. ``lark``: llguidance's Lark. ``ebnf``: GBNF, llama.cpp's form.
    ``structural_tag``: vLLM's, as JSON text. ``calls``: what `forced_calls` makes. ``field`` is the field of the
    request that asked for it, for errors; it makes no difference to the grammar.
    """

    kind: Kind
    value: str = ""
    field: str = "response_format"


class CallShape(Struct, frozen=True):
    """How a model writes a call of one tool: ``begin``, the arguments, ``end``, all literal but the arguments.

    ``schema`` is the JSON schema of the arguments (None: any object). Where a format does not write them as JSON,
    ``lark`` is the right-hand side of a rule that does, in which what `literal_text` makes is a literal text too. Names
    of special tokens in the literal texts mean those tokens.
    """

    begin: str
    end: str = ""
    schema: Mapping[str, Any] | None = None
    lark: str | None = None


LITERAL = "\x01"
"""Before a JSON string in `CallShape.lark`. JSON itself cannot contain it."""


def literal_text(text: str) -> str:
    """A literal text in `CallShape.lark`."""
    return LITERAL + json.dumps(text, ensure_ascii=False)


def forced_calls(
    shapes: Sequence[CallShape],
    *,
    prefix: str = "",
    separator: str = "",
    suffix: str = "",
    least: int = 1,
    most: int | None = 1,
    trigger: str | None = None,
    after: str | None = None,
    field: str = "tool_choice",
) -> Constraint:
    """A constraint to calls of tools: ``prefix``, ``least`` to ``most`` (None: any number) calls with ``separator``
    between them, ``suffix``.

    ``after``: free text up to and including this mark comes first (``</think>``). ``trigger``: free text may come
    before and between the calls, until this text, with which every shape begins, is written; with ``least`` 0 that is
    ``tool_choice`` auto with strict tools. Prefix, separator and suffix then have no use.
    """
    rules = [asdict(shape) for shape in shapes]
    value = {
        "shapes": rules, "prefix": prefix, "separator": separator, "suffix": suffix, "least": least, "most": most,
        "trigger": trigger, "after": after,
    }  # fmt: skip
    return Constraint("calls", json.dumps(value, ensure_ascii=False), field)


class Matcher(Protocol):
    """Where one sequence stands in its grammar. Belongs to the step loop; nothing here raises."""

    @property
    def error(self) -> str | None:
        """Why the grammar cannot go on; its request ends with this."""
        ...

    def mask(self) -> bytes | None:
        """The tokens that may come next: bit ``t % 32`` of the little-endian 32-bit word ``t // 32``. None: all."""
        ...

    def advance(self, token: int) -> bool:
        """Take the token that was chosen and make the next mask. False: the text is complete, or the grammar cannot go
        on (``error``)."""
        ...


class Grammar(Protocol):
    """A compiled constraint, shared by all sequences that are held to it."""

    def matcher(self) -> Matcher:
        """A new one, at the beginning, with its mask ready."""
        ...
