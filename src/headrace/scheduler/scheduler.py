"""Sequences in, plans out, results in, events out: the scheduler as the engine sees it."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection

from msgspec.structs import replace

from headrace.errors import EngineError
from headrace.kvcache.cache import KVCache
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.planner import Planner
from headrace.scheduler.roster import Roster
from headrace.scheduler.speculation import Speculation, accepted
from headrace.scheduler.state import RequestState, SequenceState
from headrace.scheduler.tally import Tally
from headrace.types import (
    BLOCK_SIZE,
    Cause,
    FinishReason,
    Plan,
    PlanRow,
    Request,
    RowResult,
    StepResult,
    TokenEvent,
    TokenLogprobs,
)

_log = logging.getLogger(__name__)
_NOTHING: tuple[int, ...] = ()
_MOST_PASSES = 32
"""Times that all of a sequence's tokens may be computed without one being chosen after them: once, and once more after
each preemption."""
_MISFIT = "the backend's answer does not fit the plan"


class Scheduler:
    """Live sequences → `Plan`; `StepResult` → events. Owned by the step loop; not thread-safe."""

    def __init__(
        self, config: SchedulerConfig, cache: KVCache, rng: random.Random, speculation: Speculation | None = None
    ) -> None:
        self.config = config
        self.cache = cache
        self._roster = Roster(cache, config.max_model_len, rng)
        self._speculation = speculation
        self.stalled = 0
        """Sequences that were ended because no step brought them a token. Anything but 0 is a bug."""
        self.unsatisfied = 0
        """Requests that were ended because what they asked for could not be followed any further."""
        self._planner = Planner(config, cache, self._roster, speculation)

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
        """End the requests whose deadline has passed, waiting or running: an error whose cause is the deadline."""
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

    # --------------------------------------------------------------------------------------- schedule, commit

    def schedule(self, now: float) -> Plan | None:
        """What to compute in the next step; None if there is nothing to do.

        Raises:
            EngineError: nothing could be planned for what there is to do. Never, unless there is a bug.
        """
        return self._planner.plan(now)

    def commit(self, plan: Plan, result: StepResult, now: float) -> list[TokenEvent]:
        """Take in the results of ``plan``: tokens, ends, errors, and blocks that are now worth indexing.

        Raises:
            EngineError: the result does not belong to the plan.
        """
        if len(result.rows) != len(plan.rows):
            raise EngineError(f"the backend answered {len(result.rows)} of {len(plan.rows)} rows")
        self._planner.ran(now)
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
        owner, lease = sequence.owner, sequence.lease
        tokens, logprobs, error, cause = _outcome(row, answer, owner.stops)
        if row.earlier:
            self._note_draft(sequence, len(row.earlier), len(tokens) - (error is None))
        if lease is None or (error is not None and not tokens):
            events += self._failed(owner, now, error, cause)
            return
        sequence.tokens.extend(tokens)
        # Of a draft, what was not chosen after has been computed for nothing.
        computed = len(sequence.tokens) - 1 if row.earlier else row.start + len(row.tokens)
        sequence.num_computed = computed
        if computed % BLOCK_SIZE == 0 or len(row.tokens) > 1:
            self.cache.computed(lease, sequence.tokens, sequence.keys, computed)
        if row.targets:
            owner.prompt_logprobs += answer.target_logprobs
        if not tokens and computed < len(sequence.tokens):
            self._note_chunk(sequence, len(row.tokens), events, now)
            return
        finish, stop = None, None
        if tokens and tokens[-1] in owner.stops:
            finish, stop = FinishReason.STOP, tokens[-1]
        elif owner.request.embed:
            finish = FinishReason.STOP
        elif len(sequence.tokens) >= owner.end:
            finish = FinishReason.LENGTH
        if tokens and stop is None and sequence.matcher is not None and not sequence.matcher.advance(tokens[-1]):
            broken = sequence.matcher.error
            if broken is None:
                finish = FinishReason.STOP  # the grammar's text is complete
            elif finish is None:
                error, cause = broken, Cause.REQUEST
        events.append(
            TokenEvent(owner.request.id, sequence.index, tokens, logprobs, finish, stop, embedding=answer.embedding)
        )
        self._note_token(sequence, events, now)
        if finish is not None:
            self._roster.finish(owner, sequence.index, finish, now)
        elif error is not None:
            events += self._failed(owner, now, error, cause)

    def _failed(self, owner: RequestState, now: float, error: str | None, cause: Cause) -> list[TokenEvent]:
        """A row of the request gave no token; it ends with what it has, and alone."""
        self.unsatisfied += cause is Cause.REQUEST
        return self._roster.end(owner, now, FinishReason.ERROR, error, cause=cause)

    def _note_chunk(self, sequence: SequenceState, count: int, events: list[TokenEvent], now: float) -> None:
        """A part of what it is behind by was computed. That must lead to a token some time, however often it is
        preempted: else it would take its part of every step for ever, and nobody would notice."""
        sequence.fruitless += count
        if sequence.fruitless > _MOST_PASSES * len(sequence.tokens):
            owner = sequence.owner
            _log.error(
                "%s: %d tokens computed for one of %d, and none chosen: a bug; its request ends here (computed %d,"
                " blocks %d, preemptions %d)",
                *(owner.request.id, sequence.fruitless, len(sequence.tokens), sequence.num_computed),
                *(sequence.room // BLOCK_SIZE, owner.preemptions),
            )
            self.stalled += 1
            events += self._roster.end(owner, now, FinishReason.ERROR, "no progress")

    def _note_draft(self, sequence: SequenceState, drafted: int, right: int) -> None:
        self._roster.tally.drafts.append((drafted, right))
        if self._speculation is not None:
            self._speculation.learn(sequence, drafted, right)

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
            sequence.fruitless = 0
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
            queue_time=None if owner.started_at is None else owner.started_at - owner.request.arrival,
        )


def _outcome(
    row: PlanRow, answer: RowResult, stops: Collection[int]
) -> tuple[tuple[int, ...], tuple[TokenLogprobs, ...], str | None, Cause]:
    """What a row gave: the tokens that count, their logprobs, and, if something is wrong, why there are no more and
    whose doing that is."""
    if row.earlier and len(answer.earlier) == len(row.earlier):
        choices = accepted(row, answer, stops)
        last = choices[-1]
        wrong = _MISFIT if last.token is None else None
        tokens = tuple(choice.token for choice in choices if choice.token is not None)
        return tokens, tuple(choice.logprobs for choice in choices if choice.logprobs), last.error or wrong, last.cause
    if answer.error is not None:
        return _NOTHING, (), answer.error, answer.cause
    token, logprobs = answer.token, answer.logprobs
    if (
        row.earlier
        or (token is None) != (row.sampling is None)
        or len(answer.target_logprobs) != len(row.targets)
        or (answer.embedding is None) == row.embed
    ):
        return _NOTHING, (), _MISFIT, Cause.SERVER
    return _NOTHING if token is None else (token,), () if logprobs is None else (logprobs,), None, Cause.SERVER
