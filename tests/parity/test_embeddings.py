"""The hidden state after the final norm: that of `transformers`, and the same bits however the prompt was computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.backends import Backend
from headrace.types import GREEDY, Plan, PlanRow, RowResult
from headrace.weights import open_checkpoint
from tests.parity import tiny
from tests.parity.conftest import BACKENDS

TOKENS = list(range(5, 5 + 37))
BLOCKS = [0, 1, 2]


@pytest.fixture(scope="module", params=["llama", "gemma3", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A model's files, and the state that `transformers` computes for `TOKENS`."""
    built = tiny.build(tiny.ARCHITECTURES[request.param].config())
    path = tmp_path_factory.mktemp("model")
    tiny.save(built, path)
    with torch.no_grad():
        state = built.model(torch.tensor([TOKENS])).last_hidden_state[0, -1]
    return path, state.tolist()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, model: tuple[Path, list[float]]) -> Iterator[Backend]:
    loaded = BACKENDS[request.param](open_checkpoint(model[0], max_model_len=64), 64)
    loaded.allocate_kv(12)
    yield loaded
    loaded.close()


def whole(blocks: list[int]) -> PlanRow:
    return PlanRow(1, TOKENS, 0, blocks, embed=True)


def embedding(result: RowResult) -> list[float]:
    assert result.error is None
    assert result.token is None
    assert result.embedding is not None
    return list(result.embedding)


def test_it_is_the_state_of_transformers(backend: Backend, model: tuple[Path, list[float]]) -> None:
    (result,) = backend.run(Plan((whole(BLOCKS),))).rows
    np.testing.assert_allclose(embedding(result), model[1], rtol=0, atol=1e-4)


def test_company_and_chunks_change_no_bit(backend: Backend) -> None:
    (result,) = backend.run(Plan((whole(BLOCKS),))).rows
    alone = embedding(result)
    other = PlanRow(2, TOKENS[::-1], 0, [3, 4, 5], GREEDY)
    drafted = PlanRow(3, TOKENS[:5], 0, [9], GREEDY, earlier=(GREEDY, GREEDY))
    rows = backend.run(Plan((drafted, other, whole([6, 7, 8]), other))).rows
    assert embedding(rows[2]) == alone
    assert rows[0].embedding is rows[1].embedding is None
    assert rows[1].token is not None
    (nothing,) = backend.run(Plan((PlanRow(1, TOKENS[:20], 0, BLOCKS),))).rows
    assert nothing.embedding is None
    rows = backend.run(Plan((PlanRow(1, TOKENS[20:], 20, BLOCKS, embed=True), whole([6, 7, 8])))).rows
    assert [embedding(row) for row in rows] == [alone, alone]
