"""The one scheduling rule: every sequence's computed tokens catch up with its tokens, under one budget per step.

A new prompt, a chunk of a long one, a preempted sequence and a decode differ only in how far behind they are. A step
gives one token to each sequence that is a single token behind, then shares what is left of the budget among those
further behind, in the queue's fair order.

When blocks run out, the running sequence of the highest rank (lowest priority, newest) gives its own back and is
computed again later, before anything that never ran. Any one sequence fits alone (`admission`), so there is always
progress.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import EngineError
from headrace.kvcache.cache import KVCache, Lease, blocks_for
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.roster import Roster
from headrace.scheduler.state import SequenceState
from headrace.types import BLOCK_SIZE, Plan, PlanRow


class Planner:
    """Decides what the next step computes."""

    def __init__(self, config: SchedulerConfig, cache: KVCache, roster: Roster) -> None:
        self._config = config
        self._cache = cache
        self._roster = roster
        self._copies: list[tuple[int, int]] = []  # for the next plan
        self._promised = 0  # blocks that running sequences will need to catch up

    def plan(self, now: float) -> Plan | None:
        """What to compute in the next step; None if there is nothing to do.

        Raises:
            EngineError: nothing could be planned for what there is to do. Never, unless there is a bug.
        """
        for _ in range(self._config.max_num_seqs + 1):
            plan = self._try(now)
            if plan is not None:
                return plan
            if not self._roster.running:
                break
            # Only sequences that are behind hold blocks, and no chunk of any of them fits.
            self._roster.preempt_last()
        if self._roster.requests:
            raise EngineError("nothing can be planned, and there is work to do")
        return None

    def _try(self, now: float) -> Plan | None:
        decoding = self._roster.decoding
        full = [s for s in decoding.values() if len(s.tokens) > s.room]
        if full:
            self._make_room(full)
        rows = [
            PlanRow(s.id, (s.tokens[-1],), s.num_computed, s.lease.blocks, s.rule.at(s.tokens))
            for s in decoding.values()
            if s.lease is not None
        ]
        self._roster.tally.decode_tokens += len(rows)
        if len(self._roster.queue):
            budget = self._config.max_num_batched_tokens - len(rows)
            if rows or self._roster.is_shared(now):
                budget = min(budget, self._config.max_prefill_tokens)
            for sequence, tokens in self._share(budget, now).items():
                row = self._prefill_row(sequence, tokens)
                if row is not None:
                    rows.append(row)
        if not rows:
            return None
        copies, self._copies = tuple(self._copies), []
        return Plan(tuple(rows), copies)

    def _make_room(self, full: list[SequenceState]) -> None:
        """A block more for each of the decoding sequences ``full``, best rank first, preempting from the other end."""
        for sequence in sorted(full, key=lambda s: s.order):
            while sequence.lease is not None and not self._cache.grow(sequence.lease, len(sequence.tokens)):
                self._roster.preempt_last()

    def _share(self, budget: int, now: float) -> dict[SequenceState, int]:
        """Share ``budget`` prefill tokens among the sequences that are behind; admits those that have no lease yet.

        The queue's order rules, but while others wait it hands out only a part. The rest goes to prompts that fit into
        it whole, shortest first, so that a long prompt delays a short one behind it little, and itself by a bounded
        factor. What nobody short wants goes to the queue's order after all.
        """
        roster, queue = self._roster, self._roster.queue
        behind = [s for s in roster.running.values() if s.id not in roster.decoding]
        self._promised = sum(blocks_for(len(s.tokens)) - blocks_for(s.room) for s in behind)
        shares: dict[SequenceState, int] = {}
        if budget <= 0 or (not behind and len(roster.running) >= self._config.max_num_seqs):
            return shares
        spare = int(budget * self._config.short_share) if len(queue) > 1 else 0
        main, admitting = budget - spare, True
        for sequence in queue.candidates():
            if main == 0:
                break
            if sequence.lease is None:
                if self._is_held_back(sequence, now):
                    continue
                if not self._admit(sequence, now):
                    admitting = False
                    break
            main -= self._grant(sequence, main, shares)
        for sequence in behind:  # those that the refused one stood in front of
            if main and sequence not in shares:
                main -= self._grant(sequence, main, shares)
        spare += main
        for sequence in queue.shortest(spare) if spare and admitting else ():
            if sequence in shares or (sequence.lease is None and self._is_held_back(sequence, now)):
                continue
            if sequence.remaining > spare or (sequence.lease is None and not self._admit(sequence, now)):
                break
            spare -= self._grant(sequence, spare, shares)
        for sequence in shares:
            spare -= self._grant(sequence, spare, shares)
        return shares

    def _grant(self, sequence: SequenceState, tokens: int, shares: dict[SequenceState, int]) -> int:
        """Give a sequence up to ``tokens`` more in this step; returns how many."""
        had = shares.get(sequence, 0)
        more = min(tokens, sequence.remaining - had)
        shares[sequence] = had + more
        self._roster.queue.charge(sequence, more)
        return more

    def _is_held_back(self, sequence: SequenceState, now: float) -> bool:
        """Whether the sequence would take what is kept for clients that have nothing running: its own does have."""
        roster, share = self._roster, self._config.newcomer_share
        if not roster.seats[sequence.owner.request.client] or not roster.is_shared(now):
            return False
        seats = self._config.max_num_seqs - len(roster.running)
        blocks = self._cache.available - self._promised - blocks_for(len(sequence.tokens))
        return seats <= int(self._config.max_num_seqs * share) or blocks < int(self._cache.num_blocks * share)

    def _admit(self, sequence: SequenceState, now: float) -> bool:
        """Give a waiting sequence a lease if a seat is free, and blocks for all its tokens beside what others need."""
        running = self._roster.running
        if len(running) >= self._config.max_num_seqs:
            return False
        opened = self._open(sequence)
        if opened is None:
            return False
        lease, computed, copies = opened
        needed = blocks_for(len(sequence.tokens)) - len(lease.blocks)
        reserved = self._promised + len(self._roster.decoding)  # each decoding sequence soon needs another block
        if running and needed + reserved > self._cache.available:
            self._cache.release(lease)
            return False
        self._promised += needed
        self._copies += copies
        self._roster.start(sequence, lease, computed, now)
        return True

    def _open(self, sequence: SequenceState) -> tuple[Lease, int, tuple[tuple[int, int], ...]] | None:
        """A lease with as many of the sequence's tokens computed as can be had: (lease, computed, copies).

        A sibling takes them from the sequence that computed the prompt while that is there. The last token is always
        left: its logits are what the next one is chosen from.
        """
        prompt = sequence.computed_prompt
        if prompt is not None:
            computed = len(sequence.tokens) - 1
            forked = self._cache.fork(prompt, computed)
            return None if forked is None else (forked[0], computed, forked[1])
        lease = self._cache.open(sequence.tokens, sequence.keys, reuse=not sequence.wants_prompt_logprobs)
        return lease, lease.capacity, ()

    def _prefill_row(self, sequence: SequenceState, count: int) -> PlanRow | None:
        """A row of up to ``count`` tokens, or as many as there are blocks for."""
        lease, start = sequence.lease, sequence.num_computed
        if lease is None:
            return None
        end = min(start + count, lease.capacity + self._cache.available * BLOCK_SIZE)
        if end <= start or not self._cache.grow(lease, end):
            return None
        owner = sequence.owner
        self._roster.tally.prefill_tokens += end - start
        chooses = end == len(sequence.tokens) and end < owner.end
        targets: Sequence[int] = ()
        if sequence.wants_prompt_logprobs:
            targets = owner.request.prompt[start + 1 : end + 1]
        return PlanRow(
            sequence.id,
            sequence.tokens[start:end],
            start,
            lease.blocks,
            sequence.rule.at(sequence.tokens) if chooses else None,
            targets,
            (owner.request.sampling.prompt_logprobs or 0) if targets else 0,
        )
