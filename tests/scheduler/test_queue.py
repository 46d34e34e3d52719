"""The fair queue against its definition: sort everything at every pick."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kvcache.prefix import BlockKeys
from headrace.scheduler.queue import FairQueue
from headrace.scheduler.state import RequestState, SequenceState
from headrace.types import Request, SamplingParams

ITEMS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 1), st.booleans(), st.integers(1, 300)), min_size=1, max_size=12
)


def sequence(order: int, client: str = "", priority: int = 0, length: int = 5) -> SequenceState:
    request = Request(str(order), (1,) * length, SamplingParams(1), 0.0, client=client, priority=priority)
    return SequenceState(RequestState(request, order, 0, 1000), 0, order, BlockKeys(b"", ""))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(items=ITEMS, gone=st.sets(st.integers(0, 11)))
def test_order(items: list[tuple[str, int, bool, int]], gone: set[int]) -> None:
    queue = FairQueue()
    everyone = [sequence(i, client, priority, length) for i, (client, priority, _, length) in enumerate(items)]
    for one, (_, _, has_started, _) in zip(everyone, items, strict=True):
        queue.push(one, started=has_started)
    for i in gone & set(range(len(everyone))):
        queue.discard(everyone[i])
        queue.discard(everyone[i])
    left = [i for i in range(len(everyone)) if i not in gone]
    assert len(queue) == len(left)

    times = {(client, priority): 0 for client in "abc" for priority in (0, 1)}
    picked = []
    for one in queue.candidates():
        queue.charge(one, one.remaining)
        picked.append(one.id)
        waiting = [i for i in left if i not in picked[:-1]]
        started = [i for i in waiting if items[i][2]]
        top = min(items[i][1] for i in waiting)
        if any(items[i][1] == top for i in started):
            assert one.id == min(i for i in started if items[i][1] == top)
            continue
        heads = {items[i][0]: i for i in reversed(waiting) if items[i][1] == top}  # each client's first
        least = min(times[client, top] for client in heads)
        assert one.id in [i for client, i in heads.items() if times[client, top] == least]
        times[items[one.id][0], top] += one.remaining
    assert sorted(picked) == left


def test_a_client_that_was_away_is_owed_nothing() -> None:
    queue = FairQueue()
    busy = [sequence(i, "busy", length=100) for i in range(3)]
    for one in busy:
        queue.push(one)
    for _ in range(10):
        queue.charge(busy[0], 100)
    returning = [sequence(10 + i, "back", length=100) for i in range(20)]
    for one in returning:
        queue.push(one)
    order = []
    for one in queue.candidates():
        queue.charge(one, 100)
        order.append(one.owner.request.client)
    assert order[:6].count("busy") >= 2, "they take turns from now on"


def test_the_shortest() -> None:
    queue = FairQueue()
    for i, length in enumerate([50, 7, 200, 7, 20]):
        queue.push(sequence(i, length=length))
    queue.push(sequence(9, priority=4, length=1))
    assert [one.id for one in queue.shortest(50)] == [1, 3, 4, 0]
    assert FairQueue().shortest(50) == []


def test_departed_clients_are_forgotten() -> None:
    queue = FairQueue()
    stays = sequence(0, "stays")
    queue.push(stays)
    for i in range(1, 5000):
        one = sequence(i, f"client{i}")
        queue.push(one)
        queue.charge(one, 5)
        queue.discard(one)
        queue.charge(stays, 5)
    assert len(queue._classes[0].times) < 200
