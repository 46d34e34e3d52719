"""Waits are bounded. The clock is the number of tokens computed: a step of 500 tokens takes 500."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from headrace.errors import ConfigError
from headrace.kvcache.cache import KVCache
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.scheduler import Scheduler
from headrace.types import Request, RowResult, SamplingParams, StepResult

BUDGET, CHUNK = 512, 256


class Machine:
    """A scheduler on a machine that computes a token per tick and says 7 all the time."""

    def __init__(self, num_blocks: int = 20_000, seats: int = 32, **config: float) -> None:
        self.cache = KVCache(num_blocks)
        exact = {"prefill_seconds": 1e9, "context_unit": 1e12}  # a unit is a token; pace has tests of its own
        limits = SchedulerConfig(seats, BUDGET, 10_000, CHUNK, **{**exact, **config})
        self.scheduler = Scheduler(limits, self.cache, random.Random(0))
        self.rng = random.Random(0)
        self.now = 0.0
        self.arrived: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.ended: list[str] = []
        self.heard: list[str] = []
        self.steps: list[tuple[int, int]] = []  # (decode rows, tokens)

    def add(self, name: str, prompt: int, output: int = 1, *, client: str = "", priority: int = 0) -> None:
        ids = tuple(self.rng.randrange(10_000) for _ in range(prompt))
        self.arrived[name] = self.now
        params = SamplingParams(output, temperature=0.0)
        self.scheduler.add(Request(name, ids, params, self.now, client=client, priority=priority))

    def step(self) -> None:
        plan = self.scheduler.schedule(self.now)
        if plan is None:
            return
        self.now += plan.num_tokens
        self.steps.append((sum(len(row.tokens) == 1 for row in plan.rows), plan.num_tokens))
        rows = [RowResult(None if row.sampling is None else 7) for row in plan.rows]
        for event in self.scheduler.commit(plan, StepResult(rows), self.now):
            self.heard.append(event.request_id)
            self.first.setdefault(event.request_id, self.now)
            if event.finish:
                self.ended.append(event.request_id)

    def run(self, until: Callable[[], bool]) -> None:
        for _ in range(20_000):
            if until():
                return
            self.step()
        raise AssertionError("it never happened")

    def wait(self, name: str) -> float:
        """The time to first token of a request, once it has one."""
        self.run(lambda: name in self.first)
        return self.first[name] - self.arrived[name]


def test_another_clients_long_prompts_cost_two_steps_at_most() -> None:
    machine = Machine()
    for i in range(20):
        machine.add(f"long{i}", 8000, 50, client="a")
    for i in range(30):
        machine.step()
        machine.add(f"short{i}", 100, 5, client="b")
        assert machine.wait(f"short{i}") <= 2 * CHUNK


@pytest.mark.parametrize(("num_blocks", "seats"), [(20_000, 16), (1100, 32)], ids=["all seats", "all blocks"])
def test_a_client_that_takes_everything_leaves_room_for_newcomers(num_blocks: int, seats: int) -> None:
    machine = Machine(num_blocks, seats)
    machine.add("earlier", 10, client="b")
    for i in range(64):
        machine.add(f"greedy{i}", 400, 400, client="a")
    machine.run(lambda: machine.scheduler.num_running >= 15)
    machine.add("newcomer", 100, 5, client="b")
    assert machine.wait("newcomer") <= 2 * BUDGET
    assert machine.scheduler.num_waiting > 0, "the greedy client's requests should still fill the machine"


def test_one_client_alone_may_take_everything() -> None:
    machine = Machine(seats=16)
    for i in range(64):
        machine.add(f"r{i}", 400, 400, client="a")
    machine.run(lambda: machine.scheduler.num_running == 16)


def test_a_short_prompt_behind_a_long_one_of_its_own_client_is_soon_served() -> None:
    machine = Machine()
    machine.add("long", 8000)
    machine.step()
    machine.add("short", 100)
    assert machine.wait("short") <= 2 * BUDGET
    assert machine.wait("long") <= 8100


def test_a_flood_of_short_prompts_does_not_starve_a_long_one() -> None:
    machine = Machine()
    machine.add("long", 8000)
    count = 0

    def flood() -> bool:
        nonlocal count
        for _ in range(8):
            machine.add(f"s{count}", 100)
            count += 1
        return "long" in machine.first

    machine.run(flood)
    assert machine.first["long"] <= 8000 / 0.75 + 2 * BUDGET + 2000, "three quarters of the budget are its own"


def test_a_flood_of_clients_does_not_starve_a_long_prompt() -> None:
    machine = Machine()
    machine.add("long", 4000, client="a")
    count = 0

    def flood() -> bool:
        nonlocal count
        machine.add(f"s{count}", 100, client=f"c{count}")
        count += 1
        return "long" in machine.first

    machine.run(flood)
    assert machine.first["long"] <= 4000 * 2


def test_clients_share_the_prefill_equally() -> None:
    machine = Machine()
    for i in range(5):
        machine.add(f"a{i}", 4000, client="a")
    machine.add("b", 4000, client="b")
    assert machine.wait("b") <= 2 * 4000 + 2 * BUDGET


def test_decodes_go_on_during_a_long_prefill_and_are_not_bloated() -> None:
    machine = Machine()
    for i in range(8):
        machine.add(f"chat{i}", 20, 100)
    machine.run(lambda: len(machine.first) == 8)
    machine.add("long", 5000)
    machine.steps.clear()
    machine.run(lambda: "long" in machine.first)
    assert all(decodes == 8 and tokens <= 8 + CHUNK for decodes, tokens in machine.steps[:-1])
    assert len(machine.steps) == -(-5000 // CHUNK), "and the prefill gets its chunk at every step"


def test_first_come_first_served_within_a_client_and_class() -> None:
    machine = Machine(seats=2)
    for i in range(20):
        machine.add(f"{i:02}", 50 + i, 3)
    machine.run(lambda: len(machine.ended) == 20)
    firsts = sorted(machine.first, key=lambda name: (machine.first[name], name))
    assert firsts == sorted(firsts)


def test_priorities_come_first() -> None:
    machine = Machine(seats=1)
    machine.add("running", 10, 10)
    machine.step()
    for i in range(3):
        machine.add(f"late{i}", 10, priority=5)
    for i in range(3):
        machine.add(f"soon{i}", 10, priority=-5)
    machine.run(lambda: len(machine.ended) == 7)
    assert machine.ended == ["running", "soon0", "soon1", "soon2", "late0", "late1", "late2"]


def test_the_lowest_priority_is_preempted_and_then_the_newest() -> None:
    machine = Machine(num_blocks=9, seats=4)
    for name, priority in (("minor", 1), ("old", 0), ("new", 0)):
        machine.add(name, 30, 60, priority=priority)
    machine.run(lambda: len(machine.ended) == 3)
    assert machine.scheduler.preemptions > 0
    assert machine.ended == ["old", "new", "minor"]


def test_preempted_sequences_resume_before_newcomers_start() -> None:
    machine = Machine(num_blocks=8, seats=4)
    machine.add("a", 30, 60)
    machine.add("b", 30, 60)
    machine.run(lambda: machine.scheduler.preemptions > 0)
    machine.heard.clear()
    for i in range(5):
        machine.add(f"new{i}", 20, 5)
    machine.run(lambda: len(machine.ended) == 7)
    assert list(dict.fromkeys(machine.heard)) == ["a", "b", *(f"new{i}" for i in range(5))]


def test_preemptions_are_few() -> None:
    machine = Machine(num_blocks=40, seats=16)
    for i in range(30):
        machine.add(f"r{i}", 40, 80)
    machine.run(lambda: len(machine.ended) == 30)
    assert 0 < machine.scheduler.preemptions <= 60


def test_new_requests_join_at_the_next_step() -> None:
    machine = Machine()
    machine.add("a", 20, 50)
    for _ in range(5):
        machine.step()
    machine.add("b", 20, 50)
    machine.step()
    assert "b" in machine.first


def test_a_lone_clients_long_prompt_gets_the_whole_budget() -> None:
    machine = Machine()
    machine.add("long", 5 * BUDGET - 5)
    machine.run(lambda: "long" in machine.first)
    assert len(machine.steps) == 5


def test_steps_stay_short_deep_in_a_context() -> None:
    """On a machine where attention costs, a chunk shrinks as its context grows; the step takes as long as before."""
    machine = Machine(context_unit=100.0, prefill_seconds=400.0)
    machine.add("talk", 8, 200)
    machine.step()
    machine.add("long", 9000, client="other")
    for _ in range(120):
        machine.step()
    chunks = [tokens - 1 for _, tokens in machine.steps[2:]]
    assert chunks[0] > 4 * chunks[-1] > 0
    assert all(later <= earlier for earlier, later in itertools.pairwise(chunks[10:]))


def test_little_is_wasted() -> None:
    """Allocated minus used slots, while sequences of mixed lengths grow past 256 tokens."""
    machine = Machine(seats=16)
    for i in range(16):
        machine.add(f"r{i}", 200 + i, 112)
    wasted = used = 0
    while machine.scheduler.has_work:
        machine.step()
        wasted += machine.scheduler.slots_wasted
        used += machine.cache.stats().used * 16
    assert 0 < wasted / used < 0.04


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_batched_tokens": 3}, "max_num_batched_tokens is 3, and must be at least max_num_seqs .4."),
        ({"max_prefill_tokens": 0}, "max_prefill_tokens"),
        ({"short_share": 1.0}, "short_share"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        SchedulerConfig(**{"max_num_seqs": 4, "max_num_batched_tokens": 8, "max_model_len": 10, **changes})  # type: ignore[arg-type]  # ints among the floats
