"""Compiled grammars and where sequences stand in them: `headrace.constraint.Grammar` and `Matcher` by llguidance."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher

START_SECONDS = 0.1
TOKEN_SECONDS = 0.002
"""A sequence may hold the step loop for the first of these, and for the second with each of its tokens: tens of times
what real schemas take. What needs more is ended, so that it cannot slow the others down for long."""


class CompiledGrammar:
    """A constraint, compiled; its lexer, which learns as masks are made, is shared by all its matchers."""

    def __init__(self, core: LLMatcher, mask: bytes) -> None:
        self._core = core
        self._mask = mask

    def matcher(self) -> GrammarMatcher:
        """A new one, at the beginning: 20 µs."""
        return GrammarMatcher(self._core.deep_copy(), self._mask)


class GrammarMatcher:
    """One sequence's place in a grammar."""

    __slots__ = ("_core", "_mask", "_seconds", "error")

    def __init__(self, core: LLMatcher, mask: bytes) -> None:
        self._core = core
        self._mask = mask
        self._seconds = START_SECONDS
        self.error: str | None = None
        """Why the grammar cannot go on."""

    def mask(self) -> bytes:
        """The tokens that may come next."""
        return self._mask

    def advance(self, token: int) -> bool:
        """Take a token and make the next mask; False when the text is complete, or something is wrong (``error``)."""
        begin = time.thread_time()
        core = self._core
        try:
            core.consume_token(token)
            if not core.is_stopped():
                self._mask = core.compute_bitmask()
            stopped = core.is_stopped()
            if stopped and core.is_error():
                self.error = f"the grammar cannot go on: {plain(core.get_error())}"
        except BaseException as error:  # a panic in Rust is no Exception
            stopped, self.error = True, f"the grammar cannot go on: {plain(str(error))}"
        self._seconds += TOKEN_SECONDS - (time.thread_time() - begin)
        if self._seconds < 0 and not stopped:
            self.error = "the grammar takes too much time for each token; simplify it"
            return False
        return not stopped


def plain(message: str) -> str:
    """A message of llguidance on one line, without what it says for its own developers."""
    if "panic" in message:
        return "it is too large or too ambiguous"
    line = message.replace("<non-verbose/>", "").strip()
    return " ".join(line.split())[:300]
