"""An engine on a fake backend that can hang and fail, and an ear that remembers what it heard."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from headrace.engine.engine import Engine, EngineConfig
from headrace.kvcache.cache import KVCache
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.sampling import derive_seed
from headrace.scheduler.scheduler import Scheduler
from headrace.stats import EngineStats, RequestStats, StepStats
from headrace.types import Plan, Request, SamplingParams, StepResult, TokenEvent
from tests.fakes import FakeBackend, expected_text

PATIENCE = 60.0
MODEL_LEN = 400


class GatedBackend(FakeBackend):
    """A fake that can be made to hang, to raise, and to fail single rows."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.trouble: Callable[[Plan], StepResult | None] = lambda plan: None

    def run(self, plan: Plan) -> StepResult:
        self.entered.set()
        assert self.open.wait(PATIENCE)
        return self.trouble(plan) or super().run(plan)


class Ear:
    """A listener that remembers, and lets a test wait for what it needs to have heard."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.ends: dict[tuple[str, int], TokenEvent] = {}
        self.late: list[TokenEvent] = []
        self.changed = threading.Condition()

    def __call__(self, events: list[TokenEvent]) -> None:
        with self.changed:
            for event in events:
                key = event.request_id, event.index
                if key in self.ends:
                    self.late.append(event)
                self.tokens[key] += event.tokens
                if event.finish:
                    self.ends[key] = event
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE)

    def wait_for_end(self, request_id: str, index: int = 0) -> TokenEvent:
        self.wait(lambda: (request_id, index) in self.ends)
        return self.ends[request_id, index]


class Recorder:
    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.requests: list[RequestStats] = []

    def on_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def on_request_finished(self, stats: RequestStats) -> None:
        self.requests.append(stats)


class Rig:
    """An engine on a fake backend, with an ear."""

    def __init__(self, *, start: bool = True, num_blocks: int = 100, seats: int = 8, **config: float) -> None:
        self.backend = GatedBackend(num_blocks)
        self.cache = KVCache(num_blocks)
        limits = SchedulerConfig(seats, 64, MODEL_LEN)
        self.recorder = Recorder()
        self.ear = Ear()
        self.engine = Engine(
            Scheduler(limits, self.cache, random.Random(0)),
            self.backend,
            self.recorder,
            EngineConfig(**{"check_after": 0.01, **config}),  # type: ignore[arg-type]  # ints among the floats
        )
        if start:
            self.engine.start(self.ear)

    def wait_for_stats(self, condition: Callable[[EngineStats], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not condition(self.engine.stats()):
            assert time.monotonic() < until, self.engine.stats()
            time.sleep(0.002)

    def go_on_when_closing(self) -> None:
        """The backend hangs until the engine takes nothing new any more."""

        def work() -> None:
            eventually(lambda: not self.engine.health().ready)
            self.backend.open.set()

        threading.Thread(target=work, daemon=True).start()

    def check_text(self, request: Request) -> None:
        for index in range(request.n):
            seed = derive_seed(request.sampling.seed or 0, index)
            assert self.ear.tokens[request.id, index] == expected_text(request, index, seed, MODEL_LEN)


def request(name: str = "r", prompt: int = 20, output: int = 10, n: int = 1) -> Request:
    rng = random.Random(name)
    params = SamplingParams(output, temperature=0.0, seed=1)
    return Request(name, tuple(rng.randrange(32) for _ in range(prompt)), params, time.monotonic(), n=n)


def eventually(probe: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not probe():
        assert time.monotonic() < until
        time.sleep(0.002)
