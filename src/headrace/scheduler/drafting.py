"""Guessing what a sequence will say next, so that one step can check several tokens at the price of about one.

A guess may be wrong in any way: `speculation` keeps only what the model itself would have chosen.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

from headrace.scheduler.state import SequenceState

_CANDIDATES = 8
"""Earlier places that are compared, the latest first."""
_LONGEST = 16
"""Tokens of agreement after which a place is as good as any."""


class Drafter(Protocol):
    """Proposes tokens. Called in the step loop, between two steps, with every sequence that is being decoded."""

    costs_time: bool
    """Proposing takes long enough to be counted, even when nothing comes of it."""

    def propose(self, wanted: Sequence[tuple[SequenceState, int]]) -> Sequence[Sequence[int]]:
        """For each (sequence, most): up to ``most`` tokens that may follow its ``tokens``; none is always allowed.

        A sequence that is not in ``wanted`` may have ended: what is kept of it can be dropped.
        """
        ...


class SuffixIndex:
    """Where in a growing list of tokens its end occurred before: chains of the places of each pair of tokens.

    ::

        tokens      a b c a b d a b │
        last[a, b]                └─▶ 7 ──▶ 4 ──▶ 1     (previous[7] = 4, previous[4] = 1, 0 ends a chain)

    As in LZ77's match finders. Adding a token and finding a place cost a microsecond together, however long the text.
    """

    __slots__ = ("_last", "_previous")

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._previous = array("i", [0])

    def extend(self, tokens: array[int]) -> None:
        """Take in what was appended to ``tokens`` since the last time."""
        last, previous = self._last, self._previous
        for at in range(len(previous), len(tokens)):
            pair = tokens[at - 1] << 32 | tokens[at]
            previous.append(last.get(pair, 0))
            last[pair] = at

    def find(self, tokens: array[int]) -> int:
        """The earlier place whose end agrees with the end of ``tokens`` longest, the latest of equals: the index of
        its last token. 0: not even two tokens agree. ``tokens`` is what `extend` was given."""
        end = len(tokens) - 1
        best, longest = 0, 1
        place = self._previous[end]
        for _ in range(_CANDIDATES):
            if not place:
                break
            length, most = 2, min(_LONGEST, place + 1)
            while length < most and tokens[place - length] == tokens[end - length]:
                length += 1
            if length > longest:
                best, longest = place, length
                if length >= _LONGEST:
                    break
            place = self._previous[place]
        return best


class PromptLookup:
    """Drafts by copying: what followed the longest earlier occurrence of the last tokens, in prompt or answer.

    For summaries, edits, quotes and loops. No second model. Source: Saxena, "Prompt lookup decoding" (2023).
    """

    costs_time = False

    def __init__(self) -> None:
        self._indices: dict[int, SuffixIndex] = {}

    def propose(self, wanted: Sequence[tuple[SequenceState, int]]) -> list[Sequence[int]]:
        """See `Drafter`."""
        if len(self._indices) > len(wanted):
            kept = {sequence.id for sequence, _ in wanted}
            self._indices = {name: index for name, index in self._indices.items() if name in kept}
        return [self._copy(sequence, most) for sequence, most in wanted]

    def _copy(self, sequence: SequenceState, most: int) -> Sequence[int]:
        index = self._indices.get(sequence.id)
        if index is None:
            index = self._indices[sequence.id] = SuffixIndex()
        tokens = sequence.tokens
        index.extend(tokens)
        place = index.find(tokens) if most else 0
        if not place:
            return ()
        draft = tokens[place + 1 : place + 1 + most]
        period = len(tokens) - 1 - place
        while len(draft) < most:  # a loop: it goes on as it went
            draft.append(draft[-period])
        return draft
