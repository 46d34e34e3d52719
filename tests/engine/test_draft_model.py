"""A draft model that is the model itself, one that knows nothing of it, and one that breaks."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from headrace.engine.draft_model import DraftModel
from headrace.errors import EngineError
from headrace.kvcache.integrity import problems
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.speculation import Speculation, SpeculationConfig
from headrace.types import FinishReason, Plan, PlanRow, Request, RowResult, SamplingParams, StepResult
from tests.fakes import VOCAB, FakeBackend
from tests.scheduler.simulation import World, random_request

MODEL_LEN = 200
LIMITS = SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=64, max_model_len=MODEL_LEN, max_prefill_tokens=32)


class Small(FakeBackend):
    """The large model's twin, but for a share of tokens that it gets wrong. It must never read what is not there."""

    def __init__(self, num_blocks: int, wrong: float = 0.0) -> None:
        super().__init__(num_blocks)
        self._wrong = wrong
        self._rng = random.Random(0)
        self.trouble: Callable[[], None] = lambda: None

    def run(self, plan: Plan) -> StepResult:
        self.trouble()
        return super().run(plan)

    def _answer(self, row: PlanRow) -> RowResult:
        result = super()._answer(row)
        assert result.error in (None, "every token is banned"), result.error
        if result.token is not None and self._rng.random() < self._wrong:
            return replace(result, token=self._rng.randrange(VOCAB))
        return result


def world(small: Small, draft_blocks: int = 60, blocks: int = 60, vocab: int = VOCAB, chunk: int = 256) -> World:
    model = DraftModel(small, draft_blocks, max_model_len=MODEL_LEN, vocab_size=vocab, chunk=chunk)
    w = World(LIMITS, blocks, speculation=Speculation(model, SpeculationConfig(6, 32)))
    w.draft_model = model  # type: ignore[attr-defined]  # for the checks below
    return w


def request(name: str = "a", prompt: int = 50, output: int = 60, **sampling: object) -> Request:
    rng = random.Random(name)
    params = SamplingParams(output, **{"temperature": 0.0, "seed": 1, **sampling})  # type: ignore[arg-type]  # any parameter
    return Request(name, tuple(rng.randrange(VOCAB) for _ in range(prompt)), params, 0.0)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.3, "logprobs": 2}])
def test_a_twin_is_always_right(sampling: dict[str, object]) -> None:
    w = world(Small(60))
    w.add(request(**sampling))  # type: ignore[arg-type]  # they are sampling parameters
    w.run()
    w.check_texts()
    assert w.drafts
    assert all(drafted == right for drafted, right in w.drafts)
    assert w.backend.steps < 40


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_texts_are_what_they_are_alone(start: int) -> None:
    """Random requests, preemption, aborts, too few draft blocks, prompts in chunks, wrong guesses."""
    for seed in range(start, start + 20):
        rng = random.Random(seed)
        small = Small(rng.choice([2, 6, 60]), rng.choice([0.0, 0.2, 0.9]))
        w = world(small, len(small._slots), rng.choice([8, 60]), chunk=rng.choice([1, 16, 256]))
        for i in range(8):
            w.add(random_request(rng, f"r{i}", w.now, 100))
            for _ in range(rng.choice([0, 3, 10])):
                w.step()
            if rng.random() < 0.2:
                w.abort(f"r{rng.randrange(i + 1)}")
        w.run()
        w.check_idle()
        w.check_texts()
        assert problems(w.draft_model._cache) == []  # type: ignore[attr-defined]  # see `world`


def test_what_ended_gives_its_blocks_back() -> None:
    w = world(Small(60))
    for i in range(30):
        w.add(request(f"r{i}", output=12))
        w.run()
    w.check_texts()
    model = w.draft_model  # type: ignore[attr-defined]  # see `world`
    assert len(model._tracks) <= 1
    assert model._cache.pool.used <= 5


def test_tokens_that_only_one_of_them_has() -> None:
    w = world(Small(60), vocab=20)
    w.add(request())
    w.run()
    w.check_texts()
    assert w.seen["a", 0].finish is FinishReason.LENGTH


def test_a_fault_ends_drafting_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    small = Small(60)
    calls: list[int] = []

    def trouble() -> None:
        calls.append(1)
        if len(calls) > 5:
            raise EngineError("out of memory")

    small.trouble = trouble
    w = world(small)
    w.add(request())
    w.add(request("b", temperature=1.0))
    w.run()
    w.check_texts()
    assert len(calls) == 6
    assert "there will be no more drafts" in caplog.text
