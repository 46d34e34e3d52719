"""What a reader of formats gives out: reasoning, text and calls, in the order in which the model wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from headrace.text.formats.scanner import NotThis, Scanner, Sink

Tools = Mapping[str, Mapping[str, Any]]
"""The schemas of the parameters, by the tool's name."""


class CallPiece(Struct):
    """More of call number ``index``; ``name`` is in its first piece only, ``arguments`` join to a JSON text."""

    index: int
    name: str = ""
    arguments: str = ""


class Run(Struct):
    """Reasoning, then text, then calls: what was written in another order is several runs."""

    reasoning: str = ""
    text: str = ""
    calls: list[CallPiece] = field(default_factory=list)


class Output:
    """Collects runs. Special tokens that turned out to be nothing are left out of all of them."""

    def __init__(self, stand_ins: Iterable[str] = ()) -> None:
        self._runs: list[Run] = []
        self._stand_ins = frozenset(stand_ins)
        self._without = str.maketrans("", "", "".join(self._stand_ins))

    def _clean(self, text: str) -> str:
        return text if self._stand_ins.isdisjoint(text) else text.translate(self._without)

    def reasoning(self, text: str) -> None:
        """More of the reasoning."""
        if not (text := self._clean(text)):
            return
        last = self._runs[-1] if self._runs else None
        if last is None or last.text or last.calls:
            self._runs.append(last := Run())
        last.reasoning += text

    def text(self, text: str) -> None:
        """More of what people read."""
        if not (text := self._clean(text)):
            return
        last = self._runs[-1] if self._runs else None
        if last is None or last.calls:
            self._runs.append(last := Run())
        last.text += text

    def call(self, index: int, name: str, arguments: str) -> None:
        """More of a call."""
        arguments = self._clean(arguments)
        if not self._runs:
            self._runs.append(Run())
        calls = self._runs[-1].calls
        if calls and calls[-1].index == index:
            calls[-1].arguments += arguments
        else:
            calls.append(CallPiece(index, name, arguments))

    def take(self) -> tuple[Run, ...]:
        """What has come since it was last taken."""
        runs, self._runs = tuple(self._runs), []
        return runs


def joined(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The same in as few runs as can say it."""
    if len(runs) < 2:
        return tuple(runs)
    output = Output()
    for run in runs:
        if run.reasoning:
            output.reasoning(run.reasoning)
        if run.text:
            output.text(run.text)
        for call in run.calls:
            output.call(call.index, call.name, call.arguments)
    return output.take()


class Spaced:
    """A sink that keeps white space back until text follows it: next to a mark it is the format's, not the text's."""

    __slots__ = ("_after_mark", "_any", "_kept", "_sink")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._kept: list[str] = []
        self._any = False
        self._after_mark = False

    def __call__(self, text: str) -> None:
        """More text."""
        body = text.rstrip()
        if body:
            if self._after_mark and not self._any:
                body = body.lstrip()
                self._kept.clear()
            self._sink("".join([*self._kept, body]))
            self._kept.clear()
            self._any, self._after_mark = True, False
            text = text[len(text.rstrip()) :]
        if text:
            self._kept.append(text)

    def mark(self) -> None:
        """Here is a mark."""
        self._kept.clear()
        self._after_mark = True

    def finish(self) -> None:
        """Nothing follows."""
        if self._kept and not self._after_mark:
            self._sink("".join(self._kept))
        self._kept.clear()


class SingleCallMade(Exception):  # never leaves this room: not an error
    """The one call that an answer may have is complete."""


class Calls:
    """What the parser of a format is given: the text, the tools that may be called, and where its findings go.

    Until `begin`, and from `end` on, what a parser takes is held: if it raises `NotThis`, that is ordinary text.
    """

    def __init__(
        self, scanner: Scanner, output: Output, tools: Tools, before: Callable[[], None], *, single: bool
    ) -> None:
        """``before`` is called when a call begins."""
        self.scanner = scanner
        self.tools = tools
        self.made = 0
        self._output = output
        self._before = before
        self._single = single

    def begin(self, name: str) -> None:
        """A call of this tool: what was held belongs to it.

        Raises:
            NotThis: there is no such tool.
        """
        if name not in self.tools:
            raise NotThis
        self._before()
        self.scanner.release()
        self._output.call(self.made, name, "")
        self.made += 1

    def argue(self, text: str) -> None:
        """More of the arguments of the call that was begun last."""
        if text:
            self._output.call(self.made - 1, "", text)

    def complete(self) -> None:
        """What was taken since its end belongs to it as well."""
        self.scanner.release()
        self.scanner.hold()

    def end(self) -> None:
        """Its arguments are complete.

        Raises:
            SingleCallMade: there may be no other.
        """
        if self._single:
            raise SingleCallMade
        self.scanner.hold()
