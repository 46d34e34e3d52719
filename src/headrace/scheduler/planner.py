"""The one scheduling rule: every sequence's computed tokens catch up with its tokens, under one budget per step.

A new prompt, a chunk of a long one, a preempted sequence and a decode differ only in how far behind they are. A step
gives one token to each sequence that is a single token behind, then shares what is left of the budget among those
further behind, in the queue's fair order. Who shares a prefix with one of those waits until that has computed it.

When blocks run out, the running sequence of the highest rank (lowest priority, newest) gives its own back and is
computed again later, before anything that never ran. Any one sequence fits alone (`admission`), so there is always
progress.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import EngineError
from headrace.kvcache.cache import KVCache, Lease, blocks_for
from headrace.scheduler.coming import Coming
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.pace import SMALLEST_CHUNK, Pace, tokens_within, units
from headrace.scheduler.roster import Roster
from headrace.scheduler.speculation import Speculation
from headrace.scheduler.state import SequenceState
from headrace.types import BLOCK_SIZE, Plan, PlanRow


class Planner:
    """Decides what the next step computes."""

    def __init__(
        self, config: SchedulerConfig, cache: KVCache, roster: Roster, speculation: Speculation | None = None
    ) -> None:
        self._config = config
        self._cache = cache
        self._roster = roster
        self._speculation = speculation
        self._copies: list[tuple[int, int]] = []  # for the next plan
        self._promised = 0  # blocks that running sequences will need to catch up
        self._pace = Pace(config.prefill_seconds, config.max_prefill_tokens)
        self._planned = (0.0, 0.0, 0.0)  # when the latest plan was made, its units of prefill and of decoding

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

    def ran(self, now: float) -> None:
        """The latest plan has been computed."""
        if self._speculation is not None:
            self._speculation.ran(now)
        begin, prefill, decode = self._planned
        self._pace.observe(prefill, decode, now - begin)

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
        prefill, decode = 0.0, len(rows) + sum(row.start for row in rows) / self._config.context_unit
        if len(self._roster.queue):
            room = self._config.max_num_batched_tokens - len(rows)
            shared = bool(rows) or self._roster.is_shared(now)
            budget = min(room, self._pace.budget(decode)) if shared else room
            for sequence, tokens in self._share(budget, room, now).items():
                prefill += self._units(sequence, 0, tokens)
                row = self._prefill_row(sequence, tokens)
                if row is not None:
                    rows.append(row)
        if not rows:
            return None
        if self._speculation is not None:
            rows = self._speculate(self._speculation, rows, now)
        self._planned = (now, prefill, decode)
        copies, self._copies = tuple(self._copies), []
        return Plan(tuple(rows), copies)

    def _speculate(self, speculation: Speculation, rows: list[PlanRow], now: float) -> list[PlanRow]:
        """Drafts, in a step that has nothing else to do than to decode."""
        sequences = tuple(self._roster.decoding.values())
        if len(rows) != len(sequences):
            speculation.stand_by()
            return rows
        rows = speculation.plan(sequences, rows, self._cache, self._config.max_num_batched_tokens, now)
        self._roster.tally.decode_tokens += sum(len(row.earlier) for row in rows)
        return rows

    def _make_room(self, full: list[SequenceState]) -> None:
        """A block more for each of the decoding sequences ``full``, best rank first, preempting from the other end."""
        for sequence in sorted(full, key=lambda s: s.order):
            while sequence.lease is not None and not self._cache.grow(sequence.lease, len(sequence.tokens)):
                self._roster.preempt_last()

    def _share(self, budget: float, room: int, now: float) -> dict[SequenceState, int]:
        """Share ``budget`` units of prefill, at most ``room`` tokens, among the sequences that are behind: each one's
        tokens. Admits those that have no lease yet.

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
        spare = budget * self._config.short_share if len(queue) > 1 else 0.0
        main, admitting = budget - spare, True
        coming = Coming(behind if self._cache.prefix_caching else ())
        for sequence in queue.candidates():
            if shares and main < 1:
                break
            if sequence.lease is None:
                if self._is_held_back(sequence, now) or coming.is_worth_waiting(sequence, now):
                    continue
                if not self._admit(sequence, now):
                    admitting = False
                    break
                if self._cache.prefix_caching:
                    coming.add(sequence)
            least = 0.0 if shares else self._units(sequence, 0, min(SMALLEST_CHUNK, room))
            main -= self._grant(sequence, max(main, least), shares)
            if main < 0:
                main, spare = 0.0, max(0.0, spare + main)
        for sequence in behind:  # those that the refused one stood in front of
            if main >= 1 and sequence not in shares:
                main -= self._grant(sequence, main, shares)
        spare += main
        for sequence in queue.shortest(int(spare)) if spare >= 1 and admitting else ():
            if sequence in shares:
                continue
            if sequence.lease is None and (self._is_held_back(sequence, now) or coming.is_worth_waiting(sequence, now)):
                continue
            if self._units(sequence, 0, sequence.remaining) > spare:
                continue
            if sequence.lease is None and not self._admit(sequence, now):
                break
            spare -= self._grant(sequence, spare, shares)
        for sequence in shares:
            spare -= self._grant(sequence, spare, shares)
        return shares

    def _units(self, sequence: SequenceState, skipped: int, count: int) -> float:
        """Work of a sequence's next ``count`` tokens after the ``skipped`` next ones."""
        return units(sequence.num_computed + skipped, count, self._config.context_unit)

    def _grant(self, sequence: SequenceState, budget: float, shares: dict[SequenceState, int]) -> float:
        """Give a sequence tokens of up to ``budget`` units more in this step; returns how many units."""
        had = shares.get(sequence, 0)
        within = tokens_within(budget, sequence.num_computed + had, self._config.context_unit)
        more = min(within, sequence.remaining - had)
        if more == 0:
            return 0.0
        work = self._units(sequence, had, more)
        shares[sequence] = had + more
        self._roster.queue.charge(sequence, work)
        return work

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
        whole = end == len(sequence.tokens)
        chooses = whole and end < owner.end
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
            embed=whole and owner.request.embed,
        )
