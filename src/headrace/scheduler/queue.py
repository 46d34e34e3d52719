"""Whose turn it is: the sequences that are behind, in a fair order.

Start-time fair queueing over clients (Goyal, Vin, Cheng: SFQ, SIGCOMM 1996): each client has a virtual time that
advances by the tokens computed for it; the client that is furthest behind goes next. A client that comes back from
idling starts at the present and is owed nothing for the time it was away.

Before that, priority classes are strict, and within a class sequences that were preempted (or belong to a request that
has already started) come before all that never ran. Within a client: first come, first served.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from headrace.scheduler.state import SequenceState


class _PriorityClass:
    """The sequences of one priority."""

    __slots__ = ("clients", "now", "started", "times")

    def __init__(self) -> None:
        self.started: dict[int, SequenceState] = {}
        self.clients: dict[str, dict[int, SequenceState]] = {}
        self.times: dict[str, float] = {}
        self.now = 0.0
        """The virtual time of the client served last: the least that a returning client starts from."""

    def forget_the_past(self) -> None:
        """Drop the times of absent clients that say no more than the present does: their number stays bounded."""
        self.times = {c: time for c, time in self.times.items() if c in self.clients or time > self.now}


class FairQueue:
    """Sequences that are behind. Adding, removing and charging are O(1); `candidates` is lazy."""

    def __init__(self) -> None:
        self._classes: dict[int, _PriorityClass] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, sequence: SequenceState, *, started: bool = False) -> None:
        """Add a sequence: behind its client's others, or, when its request has started, before all that have not."""
        cls = self._classes.setdefault(sequence.order[0], _PriorityClass())
        self._size += 1
        if started:
            cls.started[sequence.id] = sequence
            return
        client = sequence.owner.request.client
        waiting = cls.clients.get(client)
        if waiting is None:
            waiting = cls.clients[client] = {}
            cls.times[client] = max(cls.now, cls.times.get(client, 0.0))
        waiting[sequence.id] = sequence

    def discard(self, sequence: SequenceState) -> None:
        """Remove a sequence if it is here."""
        priority, client = sequence.order[0], sequence.owner.request.client
        cls = self._classes.get(priority)
        if cls is None:
            return
        if cls.started.pop(sequence.id, None) is None:
            waiting = cls.clients.get(client)
            if waiting is None or waiting.pop(sequence.id, None) is None:
                return
            if not waiting:
                del cls.clients[client]
                if len(cls.times) > 2 * len(cls.clients) + 64:
                    cls.forget_the_past()
        self._size -= 1
        if not cls.started and not cls.clients:
            del self._classes[priority]  # and its virtual times: with nobody waiting, nobody is owed anything

    def charge(self, sequence: SequenceState, work: float) -> None:
        """Units of prefill are computed for the sequence's client. What a preemption made necessary again is free."""
        cls = self._classes[sequence.order[0]]
        if sequence.id in cls.started:
            return
        client = sequence.owner.request.client
        cls.now = max(cls.now, cls.times[client])
        cls.times[client] += work

    def candidates(self) -> Iterator[SequenceState]:
        """Every sequence, whoever should be served next first, given what was charged up to now.

        To be charged between two of them; nothing may be added or removed meanwhile.
        """
        for priority in sorted(self._classes):
            cls = self._classes[priority]
            yield from sorted(cls.started.values(), key=lambda sequence: sequence.order)
            heap = []
            for client, waiting in cls.clients.items():
                rest = iter(waiting.values())
                heap.append((cls.times[client], next(iter(waiting)), client, rest))
            heapq.heapify(heap)
            while heap:
                _, first_id, client, rest = heap[0]
                sequence = next(rest, None)
                if sequence is None:
                    heapq.heappop(heap)
                    continue
                yield sequence
                heapq.heapreplace(heap, (cls.times[client], first_id, client, rest))

    def shortest(self, limit: int) -> list[SequenceState]:
        """The sequences of the first class with at most ``limit`` tokens to compute, the fewest first."""
        if not self._classes:
            return []
        cls = self._classes[min(self._classes)]
        short = [s for waiting in cls.clients.values() for s in waiting.values() if s.remaining <= limit]
        short.sort(key=lambda sequence: (sequence.remaining, sequence.order))
        return short
