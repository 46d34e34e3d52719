"""Calls as a name, then arguments in JSON, with marks between them: Mistral's second generation, DeepSeek, Kimi."""

from __future__ import annotations

import re

from msgspec import Struct

from headrace.text.formats import json_text
from headrace.text.formats.calls import Calls
from headrace.text.formats.json_calls import BARE, json_calls
from headrace.text.formats.scanner import Marks, NotThis, Parsing

_KIMI_NAME = re.compile(r"(?:functions\.)?(.*?)(?::\d+)?\Z")


class MistralCalls(Struct, frozen=True):
    """``[TOOL_CALLS]name[ARGS]{…}``, for each call anew; the first generation has ``[TOOL_CALLS] [{…}, {…}]``."""

    opens: tuple[str, ...] = ("[TOOL_CALLS]",)
    arguments: str = "[ARGS]"
    id: str = "[CALL_ID]"

    def read(self, calls: Calls, mark: str) -> Parsing[None]:
        """What begins with ``mark``, which is still to be taken."""
        scanner = calls.scanner
        scanner.take(len(mark))
        if (yield from scanner.skip_space()) in BARE:
            yield from json_calls(calls)
            return
        arguments = scanner.both(self.arguments)
        before = Marks((*arguments, *scanner.both(self.id), "{"))
        name = yield from _short(calls, before)
        if (yield from scanner.literal(scanner.both(self.id))):
            yield from _short(calls, Marks((*arguments, "{")))
        yield from scanner.literal(arguments)
        yield from _object(calls, name)


class SectionCalls(Struct, frozen=True):
    """A section of calls, each ``open name separator {…} close``.

    DeepSeek V3 and R1 write ``function`` for the name, and after the separator the name on a line of its own and the
    arguments in a code fence.
    """

    sections: tuple[str, ...]
    opens_call: tuple[str, ...]
    separators: tuple[str, ...]
    closes: tuple[str, ...]

    @property
    def opens(self) -> tuple[str, ...]:
        """A section, or a call without one."""
        return (*self.sections, *self.opens_call)

    def read(self, calls: Calls, mark: str) -> Parsing[None]:
        """What begins with ``mark``, which is still to be taken."""
        scanner = calls.scanner
        opens = scanner.both(*self.opens_call)
        separators = scanner.both(*self.separators)
        scanner.take(len(mark))
        if mark not in opens:
            yield from scanner.skip_space()
            if not (yield from scanner.literal(opens)):
                raise NotThis
        while True:
            name = yield from _short(calls, Marks(separators))
            yield from scanner.literal(separators)
            if (yield from scanner.skip_space()) != "{":
                name = yield from _short(calls, Marks(("\n",)))
                yield from scanner.skip_space()
                yield from scanner.literal(("```json", "```"))
            yield from _object(calls, name)
            yield from scanner.closing("```")
            while (yield from scanner.closing(*self.closes)):
                pass
            if not (yield from scanner.literal(opens)):
                return


def _short(calls: Calls, marks: Marks) -> Parsing[str]:
    """A short text up to a mark, which is not taken."""
    pieces: list[str] = []
    if not (yield from calls.scanner.until(marks, pieces.append, json_text.MAX_NAME)):
        raise NotThis
    return "".join(pieces).strip()


def _object(calls: Calls, name: str) -> Parsing[None]:
    """The arguments of a call whose name is known."""
    if (yield from calls.scanner.skip_space()) != "{":
        raise NotThis
    if name not in calls.tools and (match := _KIMI_NAME.match(name)):
        name = match[1]
    calls.begin(name)
    yield from json_text.value(calls.scanner, calls.argue)
    calls.end()
