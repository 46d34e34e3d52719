"""Calls as JSON: ``{"name": …, "arguments": {…}}``, one or a list of them, with or without marks around.

Hermes and Qwen (``<tool_call>``), Llama 3 (bare, with "parameters"), Mistral's first generation, Granite, Phi-4,
Cohere, SmolLM2, and whatever model is told to write its calls so.
"""

from __future__ import annotations

import json

from msgspec import Struct

from headrace.text.formats import json_text
from headrace.text.formats.calls import Calls
from headrace.text.formats.python_calls import python_calls
from headrace.text.formats.scanner import NotThis, Parsing

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters")
BARE = ("{", "[")


class JsonCalls(Struct, frozen=True):
    """Calls begin with one of ``opens``, or right with their JSON where that holds `BARE`; ``closes`` may follow."""

    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()
    python: str | None = None
    """After this mark calls may be Python instead."""

    def read(self, calls: Calls, mark: str) -> Parsing[None]:
        """What begins with ``mark``, which is still to be taken."""
        scanner = calls.scanner
        if mark not in BARE:
            scanner.take(len(mark))
        if mark == self.python and (yield from scanner.skip_space()) not in ("{", ""):
            yield from python_calls(calls)
        else:
            yield from json_calls(calls)
        if self.closes:
            yield from scanner.closing(*self.closes)


def json_calls(calls: Calls) -> Parsing[None]:
    """One call or a list.

    Raises:
        NotThis: it is something else, from where it was held on.
    """
    char = yield from calls.scanner.skip_space()
    if char == "{":
        yield from _call(calls)
        return
    yield from json_text.punctuation(calls.scanner, "[")
    while True:
        if (yield from calls.scanner.skip_space()) != "{":
            raise NotThis
        yield from _call(calls)
        if (yield from json_text.punctuation(calls.scanner, ",]")) == "]":
            return


class _Known(Struct):
    """What is known so far of a call: its arguments may come before its name."""

    name: str = ""
    arguments: str = ""
    begun: bool = False


def _call(calls: Calls) -> Parsing[None]:
    known = _Known()
    yield from _fields(calls, known)
    if not known.begun:
        calls.begin(known.name)
        calls.argue(known.arguments or "{}")
        calls.end()
    calls.complete()


def _fields(calls: Calls, known: _Known) -> Parsing[None]:
    """An object's fields, braces included."""
    scanner = calls.scanner
    scanner.take(1)
    if (yield from scanner.skip_space()) == "}":
        raise NotThis
    while True:
        key = yield from json_text.short_string(scanner)
        yield from json_text.punctuation(scanner, ":")
        char = yield from scanner.skip_space()
        if key in _NAMES and not known.name and char == '"':
            known.name = yield from json_text.short_string(scanner)
            if known.name not in calls.tools:
                raise NotThis
        elif key == "function" and char == "{" and not known.name:
            yield from _fields(calls, known)
        elif key in _ARGUMENTS and not known.begun and not known.arguments:
            yield from _arguments(calls, known, char)
        else:
            yield from json_text.value(scanner, _nowhere)
        if (yield from json_text.punctuation(scanner, ",}")) == "}":
            return


def _arguments(calls: Calls, known: _Known, char: str) -> Parsing[None]:
    """An object, passed on as it comes once the name is known; or one written as a string; or null."""
    if char == "{" and known.name:
        known.begun = True
        calls.begin(known.name)
        yield from json_text.value(calls.scanner, calls.argue)
        calls.end()
        return
    pieces: list[str] = []
    yield from json_text.value(calls.scanner, pieces.append)
    text = "".join(pieces)
    if char == '"':
        arguments = json_text.decoded(str(json_text.decoded(text)))
        if not isinstance(arguments, dict):
            raise NotThis
        text = json.dumps(arguments)
    elif text == "null":
        text = "{}"
    elif char != "{":
        raise NotThis
    known.arguments = text


def _nowhere(text: str) -> None:
    pass
