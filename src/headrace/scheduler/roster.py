"""Who is live, and where: every change of a sequence's place (queue, running, decoding, gone) is made here."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter

from headrace.errors import InvalidRequest
from headrace.kvcache.cache import KVCache, Lease
from headrace.kvcache.prefix import BlockKeys
from headrace.scheduler.queue import FairQueue
from headrace.scheduler.state import RequestState, SequenceState
from headrace.scheduler.tally import Tally
from headrace.types import BLOCK_SIZE, Cause, FinishReason, Plan, Request, TokenEvent

_SHARED_SECONDS = 60.0
"""How long a change from one client to another is remembered."""


class Roster:
    """The live requests and their sequences.

    ::

        add ──▶ queue, no lease ──start──▶ queue, running ──caught_up──▶ decoding, running ──▶ gone
                      ▲                          │                              │
                      └──────── preempt ─────────┴──────────────────────────────┘

    A sequence is in ``queue`` while it is behind, in ``running`` while it holds a lease, in ``decoding`` when it is
    running and not behind. From anywhere it can go: aborted, out of time, failed.
    """

    def __init__(self, cache: KVCache, max_model_len: int, rng: random.Random) -> None:
        self.requests: dict[str, RequestState] = {}
        self.sequences: dict[int, SequenceState] = {}
        self.queue = FairQueue()
        self.running: dict[int, SequenceState] = {}
        self.decoding: dict[int, SequenceState] = {}
        self.tally = Tally()
        self.unstarted = 0
        """Requests that never ran."""
        self.preemptions = 0
        """Since the beginning."""
        self.seats: Counter[str] = Counter()
        """Running sequences by client."""
        self._last_client = ""
        self._shared_until = -math.inf
        self._cache = cache
        self._max_model_len = max_model_len
        self._rng = rng
        self._deadlines: list[tuple[float, str]] = []
        self._next_order = 0
        self._next_id = 0

    def add(self, request: Request) -> None:
        """Take in a request that passed `admission.check`.

        Raises:
            InvalidRequest: a live request has the same id.
        """
        if request.id in self.requests:
            raise InvalidRequest(f"a request with the id {request.id!r} is being served")
        seed = self._rng.getrandbits(64) if request.sampling.seed is None else request.sampling.seed
        owner = RequestState(request, self._next_order, seed, self._max_model_len)
        owner.lead = self._new_sequence(owner, 0, self._cache.keys(request.cache_salt))
        self._next_order += 1
        self.requests[request.id] = owner
        self.queue.push(owner.lead)
        self.unstarted += 1
        if request.client != self._last_client:
            self._last_client, self._shared_until = request.client, request.arrival + _SHARED_SECONDS
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.id))
        if len(self._deadlines) > 2 * len(self.requests) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self.requests]
            heapq.heapify(self._deadlines)

    def is_shared(self, now: float) -> bool:
        """Whether more than one client has been about lately."""
        return now < self._shared_until

    def add_siblings(self, lead: SequenceState) -> None:
        """The other sequences of a request with ``n`` > 1, its prompt having been computed by ``lead``."""
        owner = lead.owner
        for index in range(lead.index + 1, owner.request.n):
            if owner.finish[index] is None:
                keys = lead.keys.prefix(len(owner.request.prompt) // BLOCK_SIZE)
                self.queue.push(self._new_sequence(owner, index, keys), started=True)

    def _new_sequence(self, owner: RequestState, index: int, keys: BlockKeys) -> SequenceState:
        self._next_id += 1
        sequence = SequenceState(owner, index, self._next_id, keys)
        self.sequences[sequence.id] = sequence
        return sequence

    def start(self, sequence: SequenceState, lease: Lease, computed: int, now: float) -> None:
        """Give a waiting sequence its blocks, whose first ``computed`` tokens need not be computed."""
        sequence.lease = lease
        sequence.num_computed = computed
        self.running[sequence.id] = sequence
        owner = sequence.owner
        self.seats[owner.request.client] += 1
        if owner.started_at is None:
            owner.started_at = now
            owner.cached_tokens = computed
            self.unstarted -= 1
            self._cache.note_lookup(len(sequence.tokens), computed)
            self.tally.queue_times.append(now - owner.request.arrival)

    def caught_up(self, sequence: SequenceState) -> None:
        """The sequence is not behind any more."""
        self.queue.discard(sequence)
        self.decoding[sequence.id] = sequence

    def preempt_last(self) -> None:
        """Take the blocks of the running sequence of the highest rank: it waits, and will be computed again."""
        sequence = max(self.running.values(), key=lambda s: s.order)
        self._release(sequence)
        self.queue.discard(sequence)
        self.queue.push(sequence, started=True)
        sequence.num_computed = 0
        if sequence.wants_prompt_logprobs:
            sequence.owner.prompt_logprobs.clear()
        sequence.owner.preemptions += 1
        self.preemptions += 1
        self.tally.preemptions += 1

    def finish(self, owner: RequestState, index: int, reason: FinishReason, now: float) -> None:
        """The end of one sequence: the one place where its blocks go back for good."""
        owner.finish[index] = reason
        sequence = owner.sequences.pop(index, None)
        if sequence is not None:
            owner.generated[index] = len(sequence.tokens) - len(owner.request.prompt)
            if not sequence.announced and sequence is owner.lead and None in owner.finish:
                sequence.become(owner.finish.index(None))  # the others still need the prompt
                return
            self.queue.discard(sequence)
            self._release(sequence)
            del self.sequences[sequence.id]
        if None not in owner.finish:
            del self.requests[owner.request.id]
            self.unstarted -= owner.started_at is None
            self.tally.finished.append(owner.stats(now))

    def _release(self, sequence: SequenceState) -> None:
        if sequence.lease is not None:
            self._cache.release(sequence.lease)
            sequence.lease = None
            del self.running[sequence.id]
            client = sequence.owner.request.client
            self.seats[client] -= 1
            if not self.seats[client]:
                del self.seats[client]
            self.decoding.pop(sequence.id, None)

    def end(
        self,
        owner: RequestState,
        now: float,
        reason: FinishReason,
        error: str | None = None,
        index: int | None = None,
        cause: Cause = Cause.SERVER,
    ) -> list[TokenEvent]:
        """End what is left of a request, or its ``index``-th sequence, before its time; one event for each."""
        events = []
        for i in range(owner.request.n) if index is None else (index,):
            if 0 <= i < owner.request.n and owner.finish[i] is None:
                self.finish(owner, i, reason, now)
                events.append(TokenEvent(owner.request.id, i, finish=reason, error=error, cause=cause))
        return events

    def expire(self, now: float) -> list[TokenEvent]:
        """End the requests whose deadline has passed, waiting or running: an error whose cause is the deadline."""
        events: list[TokenEvent] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, request_id = heapq.heappop(self._deadlines)
            owner = self.requests.get(request_id)
            if owner is not None and owner.request.deadline == deadline:
                events += self.end(owner, now, FinishReason.ERROR, "deadline", cause=Cause.DEADLINE)
        return events

    def fail(self, plan: Plan | None, now: float, error: str) -> list[TokenEvent]:
        """End every request that has a row in ``plan``, or all of them if None, with an error."""
        owners = list(self.requests.values())
        if plan is not None:
            found = [self.sequences[row.sequence].owner for row in plan.rows if row.sequence in self.sequences]
            owners = list(dict.fromkeys(found))
        return [event for owner in owners for event in self.end(owner, now, FinishReason.ERROR, error)]
