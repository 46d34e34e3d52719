"""JSON as it comes: values are passed on character by character, and end where their brackets and quotes do.

Only the structure is followed. What a model gets wrong inside (a missing comma) is its caller's to see; line breaks and
other control characters within strings, which models write and JSON forbids, are escaped on the way.
"""

from __future__ import annotations

import json
import re
from typing import Any

from headrace.text.formats.scanner import STAND_INS, UNLIMITED, NotThis, Parsing, Scanner, Sink

MAX_DEPTH = 128
MAX_NAME = 512
"""Longest key or name in the frame of a call; parameters may have longer ones."""

_STRUCTURE = re.compile(rf'["{{}}\[\]{STAND_INS}]')
_IN_STRING = re.compile(rf'["\\\x00-\x1f{STAND_INS}]')
_SCALAR_END = re.compile(rf"[\s,:\]\}}\[{{<{STAND_INS}]")
_CLOSERS = {"{": "}", "[": "]"}

escape = json.encoder.encode_basestring
"""Text → JSON string, quotes included."""


def value(scanner: Scanner, sink: Sink) -> Parsing[None]:
    """One JSON value to ``sink``, white space before it left out.

    Raises:
        NotThis: there is none, or it breaks off.
    """
    char = yield from scanner.skip_space()
    if char == '"':
        yield from string(scanner, sink)
    elif char in _CLOSERS:
        yield from _container(scanner, sink)
    else:
        pieces: list[str] = []
        yield from scanner.run(_SCALAR_END, pieces.append, MAX_NAME)
        text = "".join(pieces)
        decoded(text)
        sink(text)


def _container(scanner: Scanner, sink: Sink) -> Parsing[None]:
    closers: list[str] = []
    while True:
        char = yield from scanner.run(_STRUCTURE, sink)
        if char == '"':
            yield from string(scanner, sink)
            continue
        if char in _CLOSERS and len(closers) < MAX_DEPTH:
            closers.append(_CLOSERS[char])
        elif not closers or closers.pop() != char:
            raise NotThis
        sink(scanner.take(1))
        if not closers:
            return


def string(scanner: Scanner, sink: Sink, limit: int = UNLIMITED) -> Parsing[None]:
    """A JSON string, quotes included. The next character is its first quote.

    Raises:
        NotThis: it breaks off, or is longer than ``limit``.
    """
    sink(scanner.take(1))
    end = scanner.taken + limit
    while True:
        char = yield from scanner.run(_IN_STRING, sink, end - scanner.taken)
        if char == '"':
            sink(scanner.take(1))
            return
        if char == "\\":
            scanner.take(1)
            if not (yield from scanner.peek()) or scanner.taken > end:
                raise NotThis
            sink("\\" + scanner.take(1))
        elif char and char < " ":
            sink(escape(scanner.take(1))[1:-1])
        else:  # the end, or a special token
            raise NotThis


def short_string(scanner: Scanner) -> Parsing[str]:
    """A JSON string of a bounded length, decoded.

    Raises:
        NotThis: there is none, or it is too long.
    """
    if (yield from scanner.skip_space()) != '"':
        raise NotThis
    pieces: list[str] = []
    yield from string(scanner, pieces.append, MAX_NAME)
    return str(decoded("".join(pieces)))


def decoded(text: str) -> Any:
    """The value that a JSON text stands for.

    Raises:
        NotThis: it is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise NotThis from None


def _refuse(name: str) -> None:
    raise ValueError(name)


def punctuation(scanner: Scanner, allowed: str) -> Parsing[str]:
    """One of these characters, white space before it left out.

    Raises:
        NotThis: it is another.
    """
    char = yield from scanner.skip_space()
    if not char or char not in allowed:
        raise NotThis
    return scanner.take(1)
