"""Gemma's own notation, of FunctionGemma and Gemma 4: ``call:name{key:<|"|>text<|"|>,other:[1,true]}`` between marks.

It is passed on as JSON while it comes.
"""

from __future__ import annotations

import re

from msgspec import Struct

from headrace.text.formats import json_text
from headrace.text.formats.calls import Calls
from headrace.text.formats.scanner import Marks, NotThis, Parsing, Scanner

_MAX_DEPTH = 64
_BARE_END = re.compile(r"[,\]\}\{\[:\ud800-\udfff]")


class GemmaCalls(Struct, frozen=True):
    """``quote`` stands on both sides of a string."""

    opens: tuple[str, ...]
    closes: tuple[str, ...]
    quote: str

    def read(self, calls: Calls, mark: str) -> Parsing[None]:
        """What begins with ``mark``, which is still to be taken."""
        scanner = calls.scanner
        scanner.take(len(mark))
        yield from scanner.skip_space()
        if not (yield from scanner.literal(("call:",))):
            raise NotThis
        pieces: list[str] = []
        if not (yield from scanner.until(Marks(("{",)), pieces.append, json_text.MAX_NAME)):
            raise NotThis
        calls.begin("".join(pieces).strip())
        yield from self._object(calls, 0)
        calls.end()
        yield from scanner.closing(*self.closes)

    def _value(self, calls: Calls, depth: int) -> Parsing[None]:
        scanner = calls.scanner
        char = yield from scanner.skip_space()
        if depth > _MAX_DEPTH:
            raise NotThis
        if (yield from scanner.literal(scanner.both(self.quote))):
            yield from self._text(calls)
        elif char == '"':
            yield from json_text.string(scanner, calls.argue)
        elif char == "{":
            yield from self._object(calls, depth + 1)
        elif char == "[":
            yield from self._list(calls, depth + 1)
        else:
            bare = yield from _bare(scanner)
            try:
                json_text.decoded(bare)
            except NotThis:
                bare = json_text.escape(bare)
            calls.argue(bare)

    def _text(self, calls: Calls) -> Parsing[None]:
        """A string whose opening quote has been taken."""
        scanner = calls.scanner
        calls.argue('"')
        mark = yield from scanner.until(
            Marks(scanner.both(self.quote)), lambda text: calls.argue(json_text.escape(text)[1:-1])
        )
        if not mark:
            raise NotThis
        scanner.take(len(mark))
        calls.argue('"')

    def _object(self, calls: Calls, depth: int) -> Parsing[None]:
        scanner = calls.scanner
        calls.argue(scanner.take(1))
        first = True
        while True:
            char = yield from scanner.skip_space()
            if char == "}":
                calls.argue(scanner.take(1))
                return
            calls.argue("" if first else ", ")
            if (yield from scanner.literal(scanner.both(self.quote))):
                yield from self._text(calls)
            else:
                calls.argue(json_text.escape((yield from _bare(scanner))))
            calls.argue((yield from json_text.punctuation(scanner, ":")) + " ")
            yield from self._value(calls, depth)
            if (yield from scanner.skip_space()) == ",":
                scanner.take(1)
            first = False

    def _list(self, calls: Calls, depth: int) -> Parsing[None]:
        scanner = calls.scanner
        calls.argue(scanner.take(1))
        first = True
        while (yield from scanner.skip_space()) != "]":
            calls.argue("" if first else ", ")
            yield from self._value(calls, depth)
            if (yield from scanner.skip_space()) == ",":
                scanner.take(1)
            first = False
        calls.argue(scanner.take(1))


def _bare(scanner: Scanner) -> Parsing[str]:
    """A word without quotes: a key, a number, true."""
    pieces: list[str] = []
    if not (yield from scanner.run(_BARE_END, pieces.append, json_text.MAX_NAME)):
        raise NotThis
    text = "".join(pieces).strip()
    if not text:
        raise NotThis
    return text
