"""Calls as Python: ``[f(a=1, b="x"), g()]``. Llama 4, LFM2, OLMo 3, and what Gemma 3 puts into ``tool_code`` fences.

Literals are passed on as JSON while they come. Nothing is ever evaluated.
"""

from __future__ import annotations

import re

from msgspec import Struct

from headrace.text.formats import json_text
from headrace.text.formats.calls import Calls
from headrace.text.formats.scanner import STAND_INS, NotThis, Parsing, Scanner

_MAX_DEPTH = 64
_NOT_NAME = re.compile(r"[^A-Za-z0-9_.:-]")
_WORD_END = re.compile(rf"[\s,)\]}}:=({STAND_INS}]")
_WORDS = {"True": "true", "False": "false", "None": "null"}
_IN_STRING = {quote: re.compile(rf"[\\\x00-\x1f{quote}{STAND_INS}]") for quote in "\"'"}
_ESCAPES = {"'": "'", '"': '\\"', "\\": "\\\\", "n": "\\n", "t": "\\t", "r": "\\r", "b": "\\b", "f": "\\f", "\n": ""}


class PythonCalls(Struct, frozen=True):
    """Calls begin with one of ``opens``; ``[``, if it is one, belongs to them. ``closes`` may follow."""

    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()

    def read(self, calls: Calls, mark: str) -> Parsing[None]:
        """What begins with ``mark``, which is still to be taken."""
        if mark != "[":
            calls.scanner.take(len(mark))
        yield from python_calls(calls)
        if self.closes:
            yield from calls.scanner.closing(*self.closes)


def python_calls(calls: Calls) -> Parsing[None]:
    """One call, several below or beside each other, or a list.

    Raises:
        NotThis: it is something else, from where it was held on.
    """
    scanner = calls.scanner
    listed = (yield from scanner.skip_space()) == "["
    if listed:
        scanner.take(1)
    while True:
        yield from _call(calls)
        char = yield from scanner.skip_space()
        if listed or char in (",", ";"):
            if (yield from json_text.punctuation(scanner, ",]" if listed else ",;")) == "]":
                return
        elif not char or not (char.isalpha() or char == "_"):
            return


def _call(calls: Calls) -> Parsing[None]:
    scanner = calls.scanner
    name = yield from _name(scanner)
    printed = name == "print" and name not in calls.tools
    if printed:
        scanner.take(1)
        name = yield from _name(scanner)
    calls.begin(name)
    scanner.take(1)
    calls.argue("{")
    parameters = list(calls.tools[name].get("properties") or ())
    count = 0
    while (yield from scanner.skip_space()) != ")":
        yield from _argument(calls, parameters[count] if count < len(parameters) else "", count > 0)
        count += 1
        if (yield from scanner.skip_space()) == ",":
            scanner.take(1)
    scanner.take(1)
    calls.argue("}")
    calls.end()
    if printed:
        yield from scanner.closing(")")
    calls.complete()


def _name(scanner: Scanner) -> Parsing[str]:
    """A function's name; its bracket comes next."""
    yield from scanner.skip_space()
    pieces: list[str] = []
    if (yield from scanner.run(_NOT_NAME, pieces.append, json_text.MAX_NAME)) != "(":
        raise NotThis
    return "".join(pieces)


def _argument(calls: Calls, positional: str, more: bool) -> Parsing[None]:
    """``key=value``, or a value whose key is its place."""
    scanner = calls.scanner
    char = yield from scanner.skip_space()
    word = ""
    if char.isalpha() or char == "_":
        word = yield from _word(scanner)
        if (yield from scanner.skip_space()) == "=":
            scanner.take(1)
            calls.argue(f"{', ' if more else ''}{json_text.escape(word)}: ")
            yield from _value(calls, 0)
            return
    if not positional:
        raise NotThis
    calls.argue(f"{', ' if more else ''}{json_text.escape(positional)}: ")
    if word:
        calls.argue(_as_json(word))
    else:
        yield from _value(calls, 0)


def _value(calls: Calls, depth: int) -> Parsing[None]:
    scanner = calls.scanner
    char = yield from scanner.skip_space()
    if depth > _MAX_DEPTH or not char:
        raise NotThis
    if char in _IN_STRING:
        yield from _string(calls, char)
    elif char in "[(":
        yield from _items(calls, "]" if char == "[" else ")", depth)
    elif char == "{":
        yield from _items(calls, "}", depth)
    else:
        calls.argue(_as_json((yield from _word(scanner))))


def _items(calls: Calls, closer: str, depth: int) -> Parsing[None]:
    scanner = calls.scanner
    scanner.take(1)
    calls.argue("{" if closer == "}" else "[")
    more = False
    while (yield from scanner.skip_space()) != closer:
        calls.argue(", " if more else "")
        if closer == "}":
            key = yield from scanner.skip_space()
            if key in _IN_STRING:
                yield from _string(calls, key)
            else:
                calls.argue(json_text.escape((yield from _word(scanner))))
            calls.argue((yield from json_text.punctuation(scanner, ":")) + " ")
        yield from _value(calls, depth + 1)
        if (yield from scanner.skip_space()) == ",":
            scanner.take(1)
        more = True
    scanner.take(1)
    calls.argue("}" if closer == "}" else "]")


def _string(calls: Calls, quote: str) -> Parsing[None]:
    scanner = calls.scanner
    marks = (quote * 3, quote * 2, quote)
    opened = yield from scanner.literal(marks)
    calls.argue('"')
    if opened == quote * 2:
        calls.argue('"')
        return
    while True:
        char = yield from scanner.run(_IN_STRING[quote], lambda text: calls.argue(json_text.escape(text)[1:-1]))
        if char == quote:
            if (yield from scanner.literal((opened,))):
                calls.argue('"')
                return
            calls.argue(json_text.escape(scanner.take(1))[1:-1])
        elif char == "\\":
            scanner.take(1)
            yield from _escape(calls)
        elif char and char < " ":
            calls.argue(json_text.escape(scanner.take(1))[1:-1])
        else:
            raise NotThis


def _escape(calls: Calls) -> Parsing[None]:
    """What follows a backslash."""
    scanner = calls.scanner
    char = yield from scanner.peek()
    if not char:
        raise NotThis
    scanner.take(1)
    if char in "xu":
        digits = ""
        for _ in range(2 if char == "x" else 4):
            digit = yield from scanner.peek()
            if not digit or digit not in "0123456789abcdefABCDEF":
                raise NotThis
            digits += scanner.take(1)
        calls.argue(f"\\u{digits.zfill(4)}")
    else:
        calls.argue(_ESCAPES.get(char, json_text.escape("\\" + char)[1:-1]))


def _word(scanner: Scanner) -> Parsing[str]:
    pieces: list[str] = []
    if not (yield from scanner.run(_WORD_END, pieces.append, json_text.MAX_NAME)) or not pieces:
        raise NotThis
    return "".join(pieces)


def _as_json(word: str) -> str:
    if word in _WORDS:
        return _WORDS[word]
    try:
        json_text.decoded(word)
    except NotThis:
        return json_text.escape(word)
    return word
