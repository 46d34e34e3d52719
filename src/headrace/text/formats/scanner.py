"""Text that arrives in pieces of any size, read as if it were all there.

Parsers are generators: where one needs a character that has not come yet, it yields, and goes on when there is more.
So they read like parsers of whole texts, look at each character once, and cannot depend on how the text was cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TypeVar

_T = TypeVar("_T")
Parsing = Generator[None, None, _T]
"""A parser: it yields for more text, and returns its result. Use with ``yield from``."""
Sink = Callable[[str], None]

STAND_INS = "\ud800-\udfff"
"""Special tokens come as one lone surrogate each, which no decoded text has (see `headrace.text.detokenizer`)."""
UNLIMITED = 1 << 62
_SPACE = " \t\r\n"
_NO_SPACE = re.compile(r"[^ \t\r\n]")


class NotThis(Exception):  # never leaves this room: a parser's way to say that the text is something else
    """The text is not what the parser reads."""


class Scanner:
    """The text to come. ``over`` says that no more will.

    What is taken while it *holds* can be had back: until a parser is sure, its text may turn out to be ordinary.
    """

    __slots__ = ("_at", "_held", "_holding", "_stand_ins", "_text", "over", "taken")

    def __init__(self, stand_ins: Mapping[str, str] | None = None) -> None:
        """``stand_ins`` are the characters for which special tokens come, by the tokens' text."""
        self.over = False
        self.taken = 0
        """Characters so far."""
        self._stand_ins = stand_ins or {}
        self._text = ""
        self._at = 0
        self._holding = False
        self._held: list[str] = []

    def feed(self, text: str) -> None:
        """More text."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def both(self, *texts: str) -> tuple[str, ...]:
        """These texts, and as they come where special tokens are part of them: models may write either."""
        found = dict.fromkeys(texts)
        for text in texts:
            for token, stand_in in self._stand_ins.items():
                text = text.replace(token, stand_in)
            found[text] = None
        return tuple(found)

    def hold(self) -> None:
        """Remember what is taken from here on."""
        self._holding = True

    def release(self) -> str:
        """What was taken since `hold`; it is remembered no longer."""
        held = "".join(self._held)
        self._held.clear()
        self._holding = False
        return held

    def take(self, count: int) -> str:
        """The next characters, which must be there."""
        taken = self._text[self._at : self._at + count]
        self._at += count
        self.taken += count
        if self._holding:
            self._held.append(taken)
        return taken

    def peek(self) -> Parsing[str]:
        """The next character without taking it; empty at the end."""
        while self._at == len(self._text):
            if self.over:
                return ""
            yield
        return self._text[self._at]

    def skip_space(self) -> Parsing[str]:
        """Take white space; the next character after it, which is not taken."""
        while (char := (yield from self.peek())) and char in _SPACE:
            match = _NO_SPACE.search(self._text, self._at)
            self.take((match.start() if match else len(self._text)) - self._at)
        return char

    def literal(self, options: Iterable[str]) -> Parsing[str]:
        """Take the longest of ``options`` that comes next; empty, and nothing taken, if none does."""
        open_options, found = list(options), ""
        while open_options:
            ahead = self._text[self._at :]
            found = max((o for o in [found, *open_options] if ahead.startswith(o)), key=len, default="")
            open_options = [o for o in open_options if len(o) > len(ahead) and o.startswith(ahead)]
            if self.over or not open_options:
                break
            yield
        return self.take(len(found))

    def closing(self, *options: str) -> Parsing[bool]:
        """Skip white space and take one of ``options``, if it comes next; at the end of the text a part of one will do.

        Whether any was taken.
        """
        yield from self.skip_space()
        marks = self.both(*options)
        if (yield from self.literal(marks)):
            return True
        rest = self._text[self._at :]
        broken = self.over and bool(rest) and any(mark.startswith(rest) for mark in marks)
        if broken:
            self.take(len(rest))
        return broken

    def run(self, stop: re.Pattern[str], sink: Sink, limit: int = UNLIMITED) -> Parsing[str]:
        """Give what comes before the first character that ``stop`` matches to ``sink``, as it comes.

        Returns that character, which is not taken; empty at the end.

        Raises:
            NotThis: it does not come within ``limit`` characters. Those have been taken.
        """
        end = self.taken + limit
        while True:
            match = stop.search(self._text, self._at)
            self._pass(match.start() if match else len(self._text), sink, end)
            if match is not None or self.over:
                return match[0] if match else ""
            yield

    def until(self, marks: Marks, sink: Sink, limit: int = UNLIMITED) -> Parsing[str]:
        """Give what comes before the first of ``marks`` to ``sink``, as soon as it is certain.

        Returns the mark (of several at one place the longest), which is not taken; empty at the end.

        Raises:
            NotThis: see `run`.
        """
        end = self.taken + limit
        while True:
            if marks.first.isdisjoint(self._text) or (found := marks.search(self._text, self._at, self.over)) is None:
                found = len(self._text), ""
            self._pass(found[0], sink, end)
            if found[1] or (self.over and self._at == len(self._text)):
                return found[1]
            yield

    def _pass(self, to: int, sink: Sink, end: int) -> None:
        """What comes before ``to`` goes to ``sink``; no more is taken than makes ``end`` in all."""
        count = to - self._at
        excess = self.taken + count > end
        if excess:
            count = end - self.taken
        if count:
            sink(self.take(count))
        if excess:
            raise NotThis


class Marks:
    """Strings to be found in text."""

    __slots__ = ("_longest", "_pattern", "_texts", "first")

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = sorted(texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._texts)) or r"(?!)")
        self._longest = len(self._texts[0]) if self._texts else 0
        self.first = frozenset(text[0] for text in self._texts)

    def search(self, text: str, at: int, over: bool) -> tuple[int, str] | None:
        """Where in ``text``, from ``at``, the first mark begins, and which; the mark is empty while it is not certain.

        None if no part of the text can belong to one.
        """
        match = self._pattern.search(text, at)
        if not over:
            # The end of the text may begin a mark: an earlier one than was found, or a longer one at the same place.
            for start in range(max(at, len(text) - self._longest + 1), match.start() + 1 if match else len(text)):
                rest = text[start:]
                if any(len(mark) > len(rest) and mark.startswith(rest) for mark in self._texts):
                    return start, ""
        return (match.start(), match[0]) if match else None
