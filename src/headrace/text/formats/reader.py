"""One answer's text → reasoning, text and calls, as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from headrace.text.formats.calls import Calls, Output, Run, SingleCallMade, Spaced, Tools
from headrace.text.formats.scanner import Marks, NotThis, Parsing, Scanner


class CallFormat(Protocol):
    """How a model writes calls."""

    @property
    def opens(self) -> tuple[str, ...]:
        """With any of these a call may begin."""
        ...

    def read(self, calls: Calls, mark: str) -> Parsing[None]:
        """What begins with ``mark``, one of ``opens`` or its stand-in, which is still to be taken.

        Raises:
            NotThis: it is no call, from where the scanner was held on.
        """
        ...


class Reasoning(Struct, frozen=True):
    """Between which marks a model reasons before it answers. The first of each is what its template writes."""

    opens: tuple[str, ...]
    closes: tuple[str, ...]


class Reader:
    """The reader of one answer.

    Whatever the sizes of the pieces, the runs join to the same. All text comes out but the marks themselves and the
    white space next to them: what begins like a call and is none is text.
    """

    def __init__(
        self,
        *,
        reasoning: Reasoning | None = None,
        thinking: bool = False,
        calls: CallFormat | None = None,
        tools: Tools | None = None,
        single: bool = False,
        stand_ins: Mapping[str, str] | None = None,
    ) -> None:
        """``thinking``: the prompt has opened the reasoning already. ``single``: the answer ends after one call.

        ``stand_ins`` are the characters for which special tokens come, by the tokens' text.
        """
        stand_ins = stand_ins or {}
        self.thinking = thinking and reasoning is not None
        """Whether what comes next is reasoning."""
        self.ended = False
        """The one call was made: what comes now is not part of the answer."""
        self._reasoning = reasoning
        self._format = calls if tools else None
        self._scanner = Scanner(stand_ins)
        self._output = Output(stand_ins.values())
        self._text = Spaced(self._output.text)
        self._say = self._text if self._format else self._output.text
        self._calls = Calls(self._scanner, self._output, tools or {}, self._text.mark, single=single)
        self._parsing = self._read()
        next(self._parsing)

    @property
    def made(self) -> int:
        """Calls so far."""
        return self._calls.made

    def push(self, text: str) -> tuple[Run, ...]:
        """More text; what that settles."""
        if not self.ended:
            self._scanner.feed(text)
            next(self._parsing, None)
        return self._output.take()

    def finish(self) -> tuple[Run, ...]:
        """No more text comes; what was held back until then."""
        if not self.ended:
            self._scanner.over = True
            next(self._parsing, None)
        return self._output.take()

    def _read(self) -> Parsing[None]:
        yield  # until there is something
        if self._reasoning is not None:
            yield from self._think(self._reasoning)
        try:
            yield from self._answer()
        except SingleCallMade:
            self.ended = True
        self._text.finish()
        yield

    def _think(self, marks: Reasoning) -> Parsing[None]:
        scanner = self._scanner
        if not self.thinking:
            scanner.hold()
            yield from scanner.skip_space()
            found = yield from scanner.literal(scanner.both(*marks.opens))
            before = scanner.release()
            if not found:
                self._say(before)
                return
            self.thinking = True
        yield from scanner.skip_space()
        sink = Spaced(self._output.reasoning)
        mark = yield from scanner.until(Marks(scanner.both(*marks.closes)), sink)
        if not mark:
            sink.finish()
            return
        scanner.take(len(mark))
        self.thinking = False
        yield from scanner.skip_space()

    def _answer(self) -> Parsing[None]:
        scanner, calls = self._scanner, self._format
        marks = Marks(scanner.both(*calls.opens) if calls else ())
        while mark := (yield from scanner.until(marks, self._say)):
            scanner.hold()
            try:
                yield from calls.read(self._calls, mark)  # type: ignore[union-attr]  # without calls there are no marks
            except NotThis:
                self._say(scanner.release())
            else:
                scanner.release()
