"""The policy against a simulated server in virtual time: the budget holds, users keep their model."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.residency import Load, Residency, Resident, State, Unload


def of(budget: int, *sizes: int, patience: float = 5.0, **more: object) -> tuple[Residency, list[Resident]]:
    residents = [Resident(f"m{i}", size, **more) for i, size in enumerate(sizes)]  # type: ignore[arg-type]  # mixed
    return Residency(budget, patience, residents), residents


def bring_in(books: Residency, resident: Resident, now: float) -> None:
    """Load at once; the room must be there."""
    books.ask(resident, now)
    assert Load(resident) in books.decide(now)
    books.loaded(resident, resident.bytes, now)
    books.give_up(resident)


def test_the_longest_unused_goes_first() -> None:
    books, (a, b, c) = of(20, 10, 10, 10)
    bring_in(books, a, 0)
    bring_in(books, b, 1)
    books.acquire(a, 2)
    books.release(a, 3)
    books.ask(c, 4)
    assert books.decide(4) == [Unload(b)]
    books.unloaded(b)
    assert books.decide(4) == [Load(c)]


def test_no_more_go_than_need_be() -> None:
    """The small one is unused for longer, but the large one alone is enough and necessary."""
    books, (small, large, wanted) = of(30, 5, 20, 22)
    bring_in(books, small, 0)
    bring_in(books, large, 1)
    books.ask(wanted, 2)
    assert books.decide(2) == [Unload(large)]


def test_pinned_models_stay_and_what_cannot_fit_beside_them_is_known() -> None:
    books, (pinned, other) = of(20, 12, 10)
    pinned.pinned = True
    bring_in(books, pinned, 0)
    assert not books.fits(other)
    books.ask(other, 1)
    assert books.decide(100) == []
    pinned.keep_alive = 1.0
    assert books.decide(1000) == [], "pinned is stronger than keep_alive"


def test_busy_models_take_turns() -> None:
    books, (a, b) = of(10, 10, 10)
    bring_in(books, a, 0)
    books.acquire(a, 0)
    books.ask(b, 1)
    assert books.decide(1) == []
    assert books.wake_at(1) == 6
    assert books.decide(5.9) == []
    assert books.decide(6) == []
    assert a.state is State.LEAVING, "no new users; the old one finishes"
    books.ask(a, 7)
    books.release(a, 8)
    assert books.decide(8) == [Unload(a)]
    books.unloaded(a)
    assert books.decide(8) == [Load(b)]
    books.loaded(b, 10, 9)
    books.give_up(b)
    books.acquire(b, 9)
    assert books.decide(11.9) == []
    books.decide(12)
    assert b.state is State.LEAVING


def test_nobody_is_sent_away_in_vain() -> None:
    """What is idle is not enough, and what is busy is not to be had yet: so nothing goes."""
    books, (idle, busy, wanted) = of(20, 5, 15, 20)
    bring_in(books, idle, 0)
    bring_in(books, busy, 0)
    books.acquire(busy, 0)
    books.ask(wanted, 1)
    assert books.decide(2) == []
    assert idle.state is State.READY


@pytest.mark.parametrize(("keep_alive", "goes_at"), [(0.0, 10.0), (30.0, 40.0), (None, None)])
def test_keep_alive(keep_alive: float | None, goes_at: float | None) -> None:
    books, (a,) = of(10, 10, keep_alive=keep_alive)
    bring_in(books, a, 0)
    books.acquire(a, 1)
    assert books.wake_at(1) is None
    assert books.decide(9) == []
    books.release(a, 10)
    assert books.wake_at(9.5) == goes_at
    if goes_at is not None:
        assert books.decide(goes_at - 0.1) == []
        assert books.decide(goes_at) == [Unload(a)]


def test_a_failure_leaves_the_room_free() -> None:
    books, (a, b) = of(10, 10, 10)
    books.ask(a, 0)
    assert books.decide(0) == [Load(a)]
    assert books.free == 0
    books.failed(a)
    assert (books.free, a.waiting) == (10, 0)
    books.ask(b, 1)
    assert books.decide(1) == [Load(b)]


@dataclass
class Server:
    """A server of the policy's in virtual time: calls come, hold a model, go; loads and unloads take their time."""

    books: Residency
    rng: random.Random
    now: float = 0.0
    events: list[tuple[float, int, str, Resident]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    queue: dict[Resident, list[float]] = field(default_factory=dict)
    served: int = 0
    count: int = 0

    def later(self, seconds: float, what: str, resident: Resident) -> None:
        self.count += 1
        self.events.append((self.now + seconds, self.count, what, resident))

    def run(self) -> None:
        while self.events:
            wake = self.books.wake_at(self.now)
            event = min(self.events, key=lambda each: each[:2])
            if wake is not None and wake < event[0]:
                self.now = wake
            else:
                self.events.remove(event)
                self.now = event[0]
                self.happens(event[2], event[3])
            self.carry_out()
            self.check()

    def happens(self, what: str, resident: Resident) -> None:
        books = self.books
        if what == "call":
            if resident.state is State.READY:
                self.serve(resident, self.now)
            else:
                books.ask(resident, self.now)
                self.queue.setdefault(resident, []).append(self.now)
        elif what == "end":
            books.release(resident, self.now)
        elif what == "loaded":
            books.loaded(resident, resident.bytes, self.now)
            for asked in self.queue.pop(resident, []):
                books.give_up(resident)
                self.serve(resident, asked)
        else:
            books.unloaded(resident)

    def serve(self, resident: Resident, asked: float) -> None:
        self.books.acquire(resident, self.now)
        self.waits.append(self.now - asked)
        self.served += 1
        self.later(self.rng.choice([0.0, 0.1, 1.0, 10.0]), "end", resident)

    def carry_out(self) -> None:
        for action in self.books.decide(self.now):
            resident = action.resident
            if isinstance(action, Load):
                assert resident.state is State.LOADING
                self.later(self.rng.choice([0.1, 1.0, 3.0]), "loaded", resident)
            else:
                assert not resident.users, "taken from its users"
                assert not resident.pinned, "pinned"
                self.later(self.rng.choice([0.0, 0.2]), "unloaded", resident)

    def check(self) -> None:
        held = sum(each.bytes for each in self.books.residents if each.state is not State.ABSENT)
        assert held <= self.books.budget
        assert self.books.free == self.books.budget - held


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(0, 10**9))
def test_everyone_is_served_in_time(seed: int) -> None:
    rng = random.Random(seed)
    budget = rng.randint(10, 40)
    sizes = [rng.randint(1, 10) for _ in range(rng.randint(1, 6))]
    books, residents = of(budget, *sizes)
    for each in residents:
        each.keep_alive = rng.choice([None, None, 0.0, 2.0, 60.0])
    residents[0].pinned = rng.random() < 0.3 and all(sizes[0] + size <= budget for size in sizes[1:])
    server, calls = Server(books, rng), rng.randint(1, 60)
    for _ in range(calls):
        server.later(rng.uniform(0, 60), "call", rng.choice(residents))
    server.run()
    assert server.served == calls
    turn = books.patience + 10 + 3 + 0.2  # a model's turn: patience, the longest call, the longest load, an unload
    assert max(server.waits) <= 2 * len(residents) * turn, "nobody starves"
    if sum(sizes) <= budget and all(each.keep_alive is None for each in residents):
        assert all(each.state is State.READY or not each.used for each in residents), "nothing went without need"


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(0, 10**9))
def test_room_is_made_as_brute_force_would(seed: int) -> None:
    """Among idle models: if any set of them is enough, one is chosen, none of it is superfluous, and no model of it
    could be spared for one that is unused for longer."""
    rng = random.Random(seed)
    sizes = [rng.randint(1, 9) for _ in range(rng.randint(1, 6))]
    books, residents = of(sum(sizes), *sizes, rng.randint(1, sum(sizes)))
    *idle, wanted = residents
    for when, each in enumerate(rng.sample(idle, len(idle))):
        bring_in(books, each, when)
        each.pinned = rng.random() < 0.2
    books.ask(wanted, 100)
    gone = [action.resident for action in books.decide(100) if isinstance(action, Unload)]
    loose = [each for each in idle if not each.pinned]
    if sum(each.bytes for each in loose) < wanted.bytes:
        assert gone == []
        return
    size = sum(each.bytes for each in gone)
    assert size >= wanted.bytes
    assert all(size - each.bytes < wanted.bytes for each in gone), "one of them could have stayed"
    newest = max(each.used for each in gone)
    older = sum(each.bytes for each in loose if each.used < newest)
    assert older < wanted.bytes, "the newest of them had to go: all older ones together were not enough"
