"""The one scheduling rule: every sequence's computed tokens catch up with its tokens, under one budget per step.

A new prompt, a chunk of a long one, a preempted sequence and a decode differ only in how far behind they are. A step
gives one token to each sequence that is a single token behind, then shares what is left of the budget among those
further behind, in the queue's fair order.

When blocks run out, the running sequence of the highest rank (lowest priority, newest) gives its own back and is
computed again later, before anything that never ran. Any one sequence fits alone (`admission`), so there is always
progress.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.errors import EngineError
from headrace.kvcache.cache import KVCache, Lease, blocks_for
from headrace.scheduler.roster import Roster
from headrace.scheduler.state import SequenceState
from headrace.scheduler.tally import Tally
from headrace.types import BLOCK_SIZE, FinishReason, Plan, PlanRow, Request, RowResult, StepResult, TokenEvent

_log = logging.getLogger(__name__)
_NOTHING: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """How much one step may hold, in sequences and tokens."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_prefill_tokens: int = 512
    """Prefill tokens in a step that also decodes: bounds the gap between two tokens of whoever is being answered."""
    short_share: float = 0.25
    """Part of a step's prefill budget that a long prompt leaves to short ones behind it."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs, which must be at least 1")
        if self.max_prefill_tokens < 1 or not 0.0 <= self.short_share < 1.0:
            raise ValueError("max_prefill_tokens must be at least 1, short_share at least 0 and less than 1")


class Scheduler:
    """Live sequences → `Plan`; `StepResult` → events. Owned by the step loop; not thread-safe."""

    def __init__(self, config: SchedulerConfig, cache: KVCache, rng: random.Random) -> None:
        self.config = config
        self.cache = cache
        self._roster = Roster(cache, config.max_model_len, rng)
        self._copies: list[tuple[int, int]] = []  # for the next plan
        self._promised = 0  # blocks that running sequences will need to catch up

    # -------------------------------------------------------------------------------- coming, going, looking

    def add(self, request: Request) -> None:
        """Take in a request that passed `admission.check`.

        Raises:
            InvalidRequest: a live request has the same id.
        """
        self._roster.add(request)

    def abort(
        self, request_id: str, now: float, index: int | None = None, reason: FinishReason = FinishReason.ABORT
    ) -> list[TokenEvent]:
        """End a request, or one sequence of it, now. Its blocks are free on return. Unknown ids are ignored."""
        owner = self._roster.requests.get(request_id)
        return [] if owner is None else self._roster.end(owner, now, reason, index=index)

    def expire(self, now: float) -> list[TokenEvent]:
        """End the requests whose deadline has passed, waiting or running: an error that says "deadline"."""
        return self._roster.expire(now)

    def fail(self, plan: Plan | None, now: float, error: str) -> list[TokenEvent]:
        """End every request that has a row in ``plan``, or all of them if None, with an error."""
        return self._roster.fail(plan, now, error)

    def abort_all(self, now: float) -> list[TokenEvent]:
        """End every request."""
        return [event for request_id in list(self._roster.requests) for event in self.abort(request_id, now)]

    @property
    def has_work(self) -> bool:
        """Some request has not ended."""
        return bool(self._roster.requests)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._roster.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none."""
        return len(self._roster.sequences) - len(self._roster.running)

    @property
    def num_unstarted(self) -> int:
        """Requests that never ran."""
        return self._roster.unstarted

    @property
    def preemptions(self) -> int:
        """Since the beginning."""
        return self._roster.preemptions

    @property
    def slots_wasted(self) -> int:
        """Slots of leased blocks that hold no token's KV. O(running)."""
        return sum(sequence.room - sequence.num_computed for sequence in self._roster.running.values())

    def take_tally(self) -> Tally:
        """The numbers since this was last called."""
        tally, self._roster.tally = self._roster.tally, Tally()
        return tally

    # --------------------------------------------------------------------------------------------- schedule

    def schedule(self, now: float) -> Plan | None:
        """What to compute in the next step; None if there is nothing to do."""
        while True:
            plan = self._plan(now)
            if plan is not None or not self._roster.running:
                return plan
            # Only sequences that are behind hold blocks, and no chunk of any of them fits.
            self._roster.preempt_last()

    def _plan(self, now: float) -> Plan | None:
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
            budget = self.config.max_num_batched_tokens - len(rows)
            if rows:
                budget = min(budget, self.config.max_prefill_tokens)
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
            while sequence.lease is not None and not self.cache.grow(sequence.lease, len(sequence.tokens)):
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
        if budget <= 0 or (not behind and len(roster.running) >= self.config.max_num_seqs):
            return shares
        spare = int(budget * self.config.short_share) if len(queue) > 1 else 0
        main, admitting = budget - spare, True
        for sequence in queue.candidates():
            if main == 0:
                break
            if sequence.lease is None and not self._admit(sequence, now):
                admitting = False
                break
            main -= self._grant(sequence, main, shares)
        for sequence in behind:  # those that the refused one stood in front of
            if main and sequence not in shares:
                main -= self._grant(sequence, main, shares)
        spare += main
        for sequence in queue.shortest(spare) if spare and admitting else ():
            if sequence in shares:
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

    def _admit(self, sequence: SequenceState, now: float) -> bool:
        """Give a waiting sequence a lease if a seat is free, and blocks for all its tokens beside what others need."""
        running = self._roster.running
        if len(running) >= self.config.max_num_seqs:
            return False
        opened = self._open(sequence)
        if opened is None:
            return False
        lease, computed, copies = opened
        needed = blocks_for(len(sequence.tokens)) - len(lease.blocks)
        reserved = self._promised + len(self._roster.decoding)  # each decoding sequence soon needs another block
        if running and needed + reserved > self.cache.available:
            self.cache.release(lease)
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
            forked = self.cache.fork(prompt, computed)
            return None if forked is None else (forked[0], computed, forked[1])
        lease = self.cache.open(sequence.tokens, sequence.keys, reuse=not sequence.wants_prompt_logprobs)
        return lease, lease.capacity, ()

    def _prefill_row(self, sequence: SequenceState, count: int) -> PlanRow | None:
        """A row of up to ``count`` tokens, or as many as there are blocks for."""
        lease, start = sequence.lease, sequence.num_computed
        if lease is None:
            return None
        end = min(start + count, lease.capacity + self.cache.available * BLOCK_SIZE)
        if end <= start or not self.cache.grow(lease, end):
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

    # ----------------------------------------------------------------------------------------------- commit

    def commit(self, plan: Plan, result: StepResult, now: float) -> list[TokenEvent]:
        """Take in the results of ``plan``: tokens, ends, errors, and blocks that are now worth indexing.

        Raises:
            EngineError: the result does not belong to the plan.
        """
        if len(result.rows) != len(plan.rows):
            raise EngineError(f"the backend answered {len(result.rows)} of {len(plan.rows)} rows")
        events: list[TokenEvent] = []
        sequences = self._roster.sequences
        for row, answer in zip(plan.rows, result.rows, strict=True):
            sequence = sequences.get(row.sequence)
            if sequence is None:
                continue  # an earlier row of the same request failed
            try:
                self._commit_row(sequence, row, answer, now, events)
            except Exception:
                _log.exception("a result could not be taken in; its request ends here")
                events += self._roster.end(sequence.owner, now, FinishReason.ERROR, "internal error")
        return events

    def _commit_row(
        self, sequence: SequenceState, row: PlanRow, answer: RowResult, now: float, events: list[TokenEvent]
    ) -> None:
        owner, lease, token, error = sequence.owner, sequence.lease, answer.token, answer.error
        if error is None and (
            (token is None) != (row.sampling is None) or len(answer.target_logprobs) != len(row.targets)
        ):
            error = "the backend's answer does not fit the plan"
        if error is not None or lease is None:
            events += self._roster.end(owner, now, FinishReason.ERROR, error)
            return
        computed = sequence.num_computed = row.start + len(row.tokens)
        if computed % BLOCK_SIZE == 0 or len(row.tokens) > 1:
            self.cache.computed(lease, sequence.tokens, sequence.keys, computed)
        if row.targets:
            owner.prompt_logprobs += answer.target_logprobs
        if token is None and computed < len(sequence.tokens):
            return  # a chunk
        finish, tokens = None, _NOTHING
        if token is not None:
            sequence.tokens.append(token)
            tokens = (token,)
            if token in owner.stops:
                finish = FinishReason.STOP
        if finish is None and len(sequence.tokens) >= owner.end:
            finish = FinishReason.LENGTH
        events.append(
            TokenEvent(
                owner.request.id,
                sequence.index,
                tokens,
                () if answer.logprobs is None else (answer.logprobs,),
                finish,
                token if finish is FinishReason.STOP else None,
            )
        )
        self._note_token(sequence, events, now)
        if finish is not None:
            self._roster.finish(owner, sequence.index, finish, now)

    def _note_token(self, sequence: SequenceState, events: list[TokenEvent], now: float) -> None:
        """A sequence got a token (or, with ``max_tokens`` 0, its prompt was computed)."""
        roster = self._roster
        tally = roster.tally
        tally.generated_tokens += len(events[-1].tokens)
        if sequence.announced:
            tally.gaps[sequence.last_token_at] = tally.gaps.get(sequence.last_token_at, 0) + 1
        else:
            events[-1] = self._announce(sequence, events[-1], now)
        sequence.last_token_at = now
        if sequence.id not in roster.decoding:
            roster.caught_up(sequence)

    def _announce(self, sequence: SequenceState, event: TokenEvent, now: float) -> TokenEvent:
        """The first event of a sequence, with what only that one carries."""
        owner = sequence.owner
        sequence.announced = True
        if owner.first_token_at is None:
            owner.first_token_at = now
            self._roster.tally.first_token_times.append(now - owner.request.arrival)
        if sequence is owner.lead:
            self._roster.add_siblings(sequence)
        wanted = owner.request.sampling.prompt_logprobs is not None
        return replace(
            event,
            cached_tokens=owner.cached_tokens,
            prompt_logprobs=(None, *owner.prompt_logprobs) if wanted else None,
        )
