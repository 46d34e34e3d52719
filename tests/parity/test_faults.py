"""A sequence whose numbers break fails alone, and leaves nothing behind in the blocks that it had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from headrace.backends import Backend
from headrace.types import GREEDY, Plan, PlanRow, RowResult, RowSampling
from headrace.weights import open_checkpoint
from tests.parity import tiny
from tests.parity.conftest import BACKENDS

BAD_TOKEN = 50
"""Its embedding is zero, and without an epsilon the norm of zero is NaN."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    model = tiny.build(tiny.llama(num_hidden_layers=2))
    model.model.embed_tokens.weight.data[BAD_TOKEN] = 0.0
    tiny.save(model, tmp_path)
    checkpoint = open_checkpoint(tmp_path, max_model_len=64)
    spec = replace(checkpoint.spec, norm_eps=0.0)
    loaded = BACKENDS[request.param](replace(checkpoint, spec=spec), 64)
    loaded.allocate_kv(8)
    yield loaded
    loaded.close()


def rows_of(backend: Backend, *rows: PlanRow) -> list[RowResult]:
    return list(backend.run(Plan(rows)).rows)


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, RowSampling(temperature=1.0, seed=4), RowSampling(logprobs=3)],
    ids=["greedy", "drawn", "logprobs"],
)
def test_nan_stays_in_its_row(backend: Backend, sampling: RowSampling) -> None:
    good = PlanRow(1, list(range(20)), 0, [0, 1], sampling)
    (alone,) = rows_of(backend, good)
    bad = PlanRow(2, [3, BAD_TOKEN, 4], 0, [2], sampling)
    again = PlanRow(3, list(range(20)), 0, [3, 4], sampling)
    first, broken, second = rows_of(backend, good, bad, again)
    assert alone.error is None
    assert first == second == alone
    assert broken.token is None
    assert broken.error is not None
    assert "NaN" in broken.error


def test_prompt_logprobs_of_a_broken_row(backend: Backend) -> None:
    bad = PlanRow(2, [3, BAD_TOKEN, 4], 0, [2], None, targets=[BAD_TOKEN, 4, 5], target_logprobs=2)
    (broken,) = rows_of(backend, bad)
    assert broken.error is not None


@pytest.mark.parametrize("length", [1, 7, 17])
def test_blocks_full_of_nan_are_as_good_as_new(backend: Backend, length: int) -> None:
    tokens = list(range(3, 3 + length))
    (fresh,) = rows_of(backend, PlanRow(1, tokens, 0, [0, 1], GREEDY))
    rows_of(backend, PlanRow(2, [BAD_TOKEN] * 32, 0, [2, 3], GREEDY))
    (reused,) = rows_of(backend, PlanRow(3, tokens, 0, [3, 2], GREEDY))
    assert reused == fresh
    assert fresh.error is None
