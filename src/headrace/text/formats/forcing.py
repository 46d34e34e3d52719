"""What an answer is held to where calls are forced, or strict, or come after reasoning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from headrace.constraint import CallShape, Constraint, forced_calls
from headrace.errors import Unsupported
from headrace.text.formats.families import Writing
from headrace.text.formats.notation import Schema
from headrace.text.formats.recognition import Format

_ANYTHING: Schema = {"type": "object"}


class Offer(Struct, frozen=True):
    """The tools of one call that may be called: (name, schema of its parameters, whether it is strict)."""

    tools: Sequence[tuple[str, Schema, bool]]
    required: bool = False
    parallel: bool = True

    @property
    def held(self) -> bool:
        """Whether the answer is to be held to anything."""
        return self.required or any(strict for _, _, strict in self.tools)


def constrained(form: Format, offer: Offer, asked: Constraint | None, *, thinking: bool) -> Constraint | None:
    """The constraint of a chat's answer: ``asked`` for, made by its tools, or both. ``thinking``: it reasons first.

    Raises:
        Unsupported: they cannot be had together, or not with this model.
    """
    after = form.reasoning.closes[0] if thinking and form.reasoning else None
    if offer.tools and offer.held:
        return _calls(form.family.writing, offer, asked, after)
    if asked is None or (after is None and not offer.tools):
        return asked
    if offer.tools:
        return _calls(form.family.writing, offer, asked, after)
    return forced_calls([_content(asked)], after=after, field=asked.field)


def _calls(writing: Writing, offer: Offer, asked: Constraint | None, after: str | None) -> Constraint:
    shapes = [
        writing.shape(name, schema if offer.required or strict else _ANYTHING) for name, schema, strict in offer.tools
    ]
    most = None if offer.parallel else 1
    if offer.required:
        return forced_calls(
            shapes, prefix=writing.prefix, separator=writing.separator, suffix=writing.suffix, most=most, after=after
        )
    whole = [replace(each, begin=writing.prefix + each.begin, end=each.end + writing.suffix) for each in shapes]
    if asked is not None:
        content = _content(asked)
        if (writing.trigger or "").startswith("{"):  # both begin with a brace: which it is shows only further on
            return forced_calls([_either(offer, content, asked)], after=after, field=asked.field)
        return forced_calls([*whole, content], after=after, field=asked.field)
    if writing.trigger is None:
        raise Unsupported('strict needs tool_choice "required" with this model: its calls begin as prose may', "tools")
    return forced_calls(whole, trigger=writing.trigger, least=0, most=most, after=after, field="tools")


def _either(offer: Offer, content: CallShape, asked: Constraint) -> CallShape:
    """A call in bare JSON or the content, as one schema."""
    if content.schema is None:
        raise Unsupported(f"{asked.field} of this kind cannot be combined with tools with this model", asked.field)
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "parameters": schema if strict else _ANYTHING},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for name, schema, strict in offer.tools
    ]
    return CallShape("", schema={"anyOf": [*calls, content.schema]})


def _content(asked: Constraint) -> CallShape:
    """A constraint of the content as one alternative among calls.

    Raises:
        Unsupported: it is a grammar of its own.
    """
    if asked.kind == "json_object":
        schema: Any = json.loads(asked.value) if asked.value else _ANYTHING
        return CallShape("", schema=schema)
    if asked.kind == "json_schema":
        return CallShape("", schema=json.loads(asked.value))
    if asked.kind == "choice":
        return CallShape("", lark=" | ".join(json.dumps(text) for text in json.loads(asked.value)))
    if asked.kind == "regex":
        escaped = asked.value.replace("/", "\\/")
        return CallShape("", lark=f"/{escaped}/")
    raise Unsupported(
        f"{asked.field} of this kind cannot be combined with tools or with reasoning: turn those off", asked.field
    )
