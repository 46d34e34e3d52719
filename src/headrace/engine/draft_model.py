"""Drafts by a second, smaller model with the same tokenizer, on a backend and a KV pool of its own."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence

from msgspec.structs import replace

from headrace.backends import Backend
from headrace.errors import EngineError
from headrace.kvcache.cache import KVCache, Lease
from headrace.scheduler.state import SequenceState
from headrace.types import Plan, PlanRow, RowSampling

_log = logging.getLogger(__name__)


class _Track:
    """One sequence in the draft model: the tokens whose KV its blocks hold, guesses among them."""

    __slots__ = ("known", "lease", "tokens")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.tokens: array[int] = array("i")
        self.known = 0
        """How many of them were the sequence's own when they were last compared: those never change."""

    def keep_common(self, tokens: array[int]) -> int:
        """Drop what is not in ``tokens``, and its last one in any case; returns how many are left."""
        common, most = self.known, min(len(self.tokens), len(tokens) - 1)
        common = min(common, most)
        while common < most and self.tokens[common] == tokens[common]:
            common += 1
        del self.tokens[common:]
        self.known = common
        return common


class DraftModel:
    """A `headrace.scheduler.drafting.Drafter`: the model says each token with the sampling that the large one will use.

    Equal seeds and positions make two models that agree on the distribution choose the same token most of the time.
    A prompt is computed in chunks of ``chunk`` tokens, one between two steps; until the draft model has caught up with
    a sequence, that one has no drafts. A fault of the draft model ends drafting, and nothing else.
    """

    costs_time = True

    def __init__(
        self, backend: Backend, num_blocks: int, *, max_model_len: int, vocab_size: int, chunk: int = 256
    ) -> None:
        """``backend`` has ``num_blocks`` KV blocks allocated, and a context of ``max_model_len``; ``vocab_size`` is the
        large model's. Longer sequences have no drafts."""
        self._backend = backend
        self._max_model_len = max_model_len
        self._cache = KVCache(num_blocks, prefix_caching=False)
        self._vocab = min(vocab_size, backend.vocab_size)
        self._chunk = chunk
        self._tracks: dict[int, _Track] = {}
        self._failed = False

    def propose(self, wanted: Sequence[tuple[SequenceState, int]]) -> Sequence[Sequence[int]]:
        """See `headrace.scheduler.drafting.Drafter`."""
        if not self._failed:
            try:
                self._forget_all_but({sequence.id for sequence, _ in wanted})
                return self._propose(wanted)
            except EngineError:
                _log.exception("the draft model failed; there will be no more drafts")
                self._failed = True
        return ((),) * len(wanted)

    def _forget_all_but(self, ids: set[int]) -> None:
        for name in [name for name in self._tracks if name not in ids]:
            self._cache.release(self._tracks.pop(name).lease)

    def _propose(self, wanted: Sequence[tuple[SequenceState, int]]) -> list[Sequence[int]]:
        drafts: list[array[int]] = [array("i") for _ in wanted]
        going = {}
        for place, (sequence, most) in enumerate(wanted):
            if most and self._catch_up(sequence, most):
                going[place] = array("i", sequence.tokens)
        while going:
            rows = [self._row(wanted[place][0], context) for place, context in going.items()]
            results = self._backend.run(Plan(tuple(rows))).rows
            for place, result in zip(list(going), results, strict=True):
                sequence, most = wanted[place]
                self._tracks[sequence.id].tokens = going[place][:]
                token = result.token
                if token is None or token >= self._vocab:
                    del going[place]  # nothing can be chosen, or nothing that the large model knows
                    continue
                drafts[place].append(token)
                going[place].append(token)
                if len(drafts[place]) == most:
                    del going[place]
        return list(drafts)

    def _catch_up(self, sequence: SequenceState, most: int) -> bool:
        """Make room, and compute all but the last token; False if that is not done yet, or cannot be."""
        track = self._tracks.get(sequence.id)
        if track is None:
            lease = self._cache.open(array("i"), self._cache.keys(""), reuse=False)
            track = self._tracks[sequence.id] = _Track(lease)
        tokens = sequence.tokens
        computed = track.keep_common(tokens)
        end = len(tokens) + most
        if end > self._max_model_len or max(tokens[computed:]) >= self._vocab or not self._cache.grow(track.lease, end):
            return False
        # A few are computed with the last one: what the large model chose after the latest draft.
        if len(tokens) - computed <= 2:
            return True
        end = min(computed + self._chunk, len(tokens) - 1)
        self._backend.run(Plan((PlanRow(sequence.id, tokens[computed:end], computed, track.lease.blocks),)))
        track.tokens = tokens[:end]
        track.known = end
        return False

    def _row(self, sequence: SequenceState, context: array[int]) -> PlanRow:
        track = self._tracks[sequence.id]
        start = len(track.tokens)
        sampling: RowSampling = sequence.rule.at(context)
        if sampling.logprobs is not None:
            sampling = replace(sampling, logprobs=None)
        return PlanRow(sequence.id, context[start:], start, track.lease.blocks, sampling)
