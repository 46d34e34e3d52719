"""Prefixes that are being computed: who shares one does better to wait for it than to compute it too.

Sixteen users with one system prompt, arriving at once, would else compute it sixteen times: none finds it in the prefix
index before the first has finished it.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.scheduler.state import SequenceState
from headrace.types import BLOCK_SIZE

LEAST_BLOCKS = 4
"""Shared blocks, not computed yet, that are worth a step's wait."""
MOST_SECONDS = 2.0
"""The longest wait, counted from the request's arrival: whoever computes the prefix may be slow."""


class Coming:
    """The next blocks of the sequences that compute a prompt."""

    def __init__(self, behind: Iterable[SequenceState]) -> None:
        self._keys: dict[int, set[bytes]] = {}  # block → keys
        for sequence in behind:
            self.add(sequence)

    def add(self, sequence: SequenceState) -> None:
        """This sequence computes what it is behind by."""
        block = sequence.num_computed // BLOCK_SIZE + LEAST_BLOCKS - 1
        if (block + 1) * BLOCK_SIZE <= len(sequence.tokens):
            self._keys.setdefault(block, set()).add(sequence.keys.at(block, sequence.tokens))

    def is_worth_waiting(self, sequence: SequenceState, now: float) -> bool:
        """Whether a sequence that never ran finds more of its prompt computed if it starts later."""
        owner = sequence.owner
        if owner.started_at is not None or sequence.wants_prompt_logprobs or now - owner.request.arrival > MOST_SECONDS:
            return False
        return any(
            (block + 1) * BLOCK_SIZE <= len(sequence.tokens) and sequence.keys.at(block, sequence.tokens) in keys
            for block, keys in self._keys.items()
        )
