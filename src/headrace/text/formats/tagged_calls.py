"""Calls in tags, one for each parameter: Qwen3-Coder's, and GLM's.

``<tool_call><function=f><parameter=a>…</parameter></function></tool_call>``. A value's type is in the tool's schema
alone: what is a string there is passed on as it comes, anything else when it is complete, as JSON if it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from headrace.text.formats import json_text
from headrace.text.formats.calls import Calls
from headrace.text.formats.json_calls import json_calls
from headrace.text.formats.scanner import Marks, NotThis, Parsing, Scanner

_END = Marks((">", "\n", "<"))


class TaggedCalls(Struct, frozen=True):
    """Qwen3-Coder's tags; where JSON follows the opening mark, it is Hermes' format."""

    opens: tuple[str, ...] = ("<tool_call>", "<function=")
    closes: tuple[str, ...] = ("</tool_call>",)

    def read(self, calls: Calls, mark: str) -> Parsing[None]:
        """What begins with ``mark``, which is still to be taken."""
        scanner = calls.scanner
        functions = scanner.both("<function=")
        if mark not in functions:
            scanner.take(len(mark))
            if (yield from scanner.skip_space()) == "{":
                yield from json_calls(calls)
                return
        if not (yield from scanner.literal(functions)):
            raise NotThis
        name = yield from _name(scanner)
        calls.begin(name)
        calls.argue("{")
        first = True
        while (yield from _next(scanner, "<parameter=")):
            key = yield from _name(scanner)
            calls.argue(f"{'' if first else ', '}{json_text.escape(key)}: ")
            yield from _value(calls, _is_text(calls.tools[name], key), scanner.both("</parameter>"))
            first = False
        calls.argue("}")
        calls.end()
        yield from scanner.closing("</function>")
        yield from scanner.closing(*self.closes)


class KeyedCalls(Struct, frozen=True):
    """GLM's: ``<tool_call>f`` and then pairs of ``<arg_key>a</arg_key><arg_value>…</arg_value>``."""

    opens: tuple[str, ...] = ("<tool_call>",)
    closes: tuple[str, ...] = ("</tool_call>",)

    def read(self, calls: Calls, mark: str) -> Parsing[None]:
        """What begins with ``mark``, which is still to be taken."""
        scanner = calls.scanner
        closes = scanner.both(*self.closes)
        scanner.take(len(mark))
        yield from scanner.skip_space()
        name = yield from _text(scanner, Marks(["\n", *scanner.both("<arg_key>"), *closes]))
        calls.begin(name)
        calls.argue("{")
        first = True
        while (yield from _next(scanner, "<arg_key>")):
            key = yield from _text(scanner, Marks(scanner.both("</arg_key>")))
            yield from scanner.literal(scanner.both("</arg_key>"))
            if not (yield from _next(scanner, "<arg_value>")):
                raise NotThis
            calls.argue(f"{'' if first else ', '}{json_text.escape(key)}: ")
            yield from _value(calls, _is_text(calls.tools[name], key), scanner.both("</arg_value>"))
            first = False
        calls.argue("}")
        calls.end()
        yield from scanner.closing(*self.closes)


def _next(scanner: Scanner, tag: str) -> Parsing[bool]:
    """Whether this tag comes next; it is taken."""
    yield from scanner.skip_space()
    return bool((yield from scanner.literal(scanner.both(tag))))


def _name(scanner: Scanner) -> Parsing[str]:
    """The rest of an opening tag."""
    name = yield from _text(scanner, _END)
    if scanner.take(1) != ">":
        raise NotThis
    return name


def _text(scanner: Scanner, marks: Marks) -> Parsing[str]:
    pieces: list[str] = []
    if not (yield from scanner.until(marks, pieces.append, json_text.MAX_NAME)):
        raise NotThis
    return "".join(pieces).strip()


def _value(calls: Calls, is_text: bool, closes: tuple[str, ...]) -> Parsing[None]:
    """A parameter's value without the line breaks next to its tags, as JSON; the closing tag is taken."""
    scanner = calls.scanner
    yield from scanner.literal(("\r\n", "\n"))
    marks = Marks([text for close in closes for text in (close, f"\n{close}")])
    if is_text:
        calls.argue('"')
        mark = yield from scanner.until(marks, lambda text: calls.argue(json_text.escape(text)[1:-1]))
        calls.argue('"' if mark else "")
    else:
        pieces: list[str] = []
        mark = yield from scanner.until(marks, pieces.append)
        calls.argue(_as_json("".join(pieces)) if mark else "")
    if not mark:
        raise NotThis
    scanner.take(len(mark))


def _as_json(text: str) -> str:
    text = text.strip()
    try:
        json_text.decoded(text)
    except NotThis:
        # Models of this kind were shown Python's words.
        return {"True": "true", "False": "false", "None": "null"}.get(text) or json_text.escape(text)
    return text


def _is_text(schema: Mapping[str, Any], key: str) -> bool:
    """Whether this parameter is a string and nothing else."""
    properties = schema.get("properties")
    described = properties.get(key) if isinstance(properties, Mapping) else None
    return isinstance(described, Mapping) and described.get("type") == "string"
