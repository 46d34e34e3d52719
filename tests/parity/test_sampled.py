"""Every sampling parameter through whole steps: each backend chooses the token that the reference chooses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from headrace.backends import Backend
from headrace.types import Plan, PlanRow, RowResult, RowSampling
from headrace.weights import open_checkpoint
from headrace.weights.spec import Checkpoint
from tests.parity import tiny
from tests.parity.conftest import BACKENDS

ROWS, STEPS, LENGTH = 20, 10, 18


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path: Path = tmp_path_factory.mktemp("model")
    tiny.save(tiny.build(tiny.llama()), path)
    return open_checkpoint(path, max_model_len=64)


def random_row(rng: np.random.Generator, sequence: int) -> PlanRow:
    tokens = rng.integers(0, tiny.VOCAB, LENGTH).tolist()
    biased = rng.integers(0, tiny.VOCAB, rng.integers(0, 6)).tolist()
    sampling = RowSampling(
        temperature=float(rng.choice([0.0, 0.5, 1.0, 2.0])),
        top_k=int(rng.choice([0, 0, 3, 30])),
        top_p=float(rng.choice([1.0, 0.6, 0.95])),
        min_p=float(rng.choice([0.0, 0.05])),
        repetition_penalty=float(rng.choice([1.0, 0.8, 1.4])),
        presence_penalty=float(rng.choice([0.0, -1.0, 1.5])),
        frequency_penalty=float(rng.choice([0.0, 0.5, -0.3])),
        seed=int(rng.integers(0, 2**63)),
        position=LENGTH,
        prompt_length=int(rng.integers(0, LENGTH)),
        history=tokens,
        bias={t: float(rng.choice([-math.inf, -5.0, 3.0])) for t in biased},
        allowed=rng.integers(0, tiny.VOCAB, 25).tolist() if rng.random() < 0.2 else None,
        logprobs=int(rng.choice([0, 1, 7, 99])) if rng.random() < 0.5 else None,
    )
    return PlanRow(sequence, tokens, 0, [2 * sequence, 2 * sequence + 1], sampling)


def assert_same(ours: RowResult, expected: RowResult) -> None:
    assert (ours.token, ours.error) == (expected.token, expected.error)
    assert (ours.logprobs is None) == (expected.logprobs is None)
    if ours.logprobs is None or expected.logprobs is None:
        return
    assert (ours.logprobs.token, ours.logprobs.rank) == (expected.logprobs.token, expected.logprobs.rank)
    assert [t for t, _ in ours.logprobs.top] == [t for t, _ in expected.logprobs.top]
    mine, theirs = ([x.logprob, *(p for _, p in x.top)] for x in (ours.logprobs, expected.logprobs))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)


def loaded(name: str, checkpoint: Checkpoint) -> Backend:
    backend = BACKENDS[name](checkpoint, 64)
    backend.allocate_kv(2 * ROWS)
    return backend


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> list[tuple[Plan, list[RowResult]]]:
    rng = np.random.default_rng(12)
    backend = loaded("reference", checkpoint)
    plans = [Plan(tuple(random_row(rng, i) for i in range(ROWS))) for _ in range(STEPS)]
    return [(plan, list(backend.run(plan).rows)) for plan in plans]


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "reference"])
def test_same_choice(name: str, checkpoint: Checkpoint, expected: list[tuple[Plan, list[RowResult]]]) -> None:
    backend = loaded(name, checkpoint)
    for plan, results in expected:
        for ours, theirs in zip(backend.run(plan).rows, results, strict=True):
            assert_same(ours, theirs)
    backend.close()
