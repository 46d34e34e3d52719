"""The reference backend's own rules; that its numbers are right is `tests/parity`'s business."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from headrace.backends import Backend
from headrace.backends.reference.backend import load
from headrace.errors import ConfigError, EngineError, ModelFileError
from headrace.types import GREEDY, Plan, PlanRow, RowSampling
from headrace.weights.spec import Checkpoint, DType, ModelSpec, Rope, Tensor, TextSource

SPEC = ModelSpec(
    architecture="llama",
    vocab_size=19,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    ffn_size=12,
    max_positions=64,
    norm_eps=1e-5,
    ropes=(Rope((1.0, 0.1)),),
    layer_rope=(0, 0),
    layer_window=(None, 5),
    attention_scale=0.5,
)


def checkpoint(poison: float | None = None) -> Checkpoint:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (19, 8), "norm": (8,)}
    for i in range(2):
        layer = {"attention_norm": (8,), "q": (8, 8), "k": (4, 8), "v": (4, 8), "o": (8, 8)}
        layer |= {"ffn_norm": (8,), "gate": (12, 8), "up": (12, 8), "down": (8, 12)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    tensors = {}
    for name, shape in shapes.items():
        values = rng.normal(0, 1, shape).astype(np.float32)
        if poison is not None and name == "layers.1.up":
            values[3, 4] = poison
        tensors[name] = Tensor(DType.F32, shape, memoryview(values.tobytes()))
    return Checkpoint("tiny", "tiny.gguf", SPEC, tensors, TextSource())


@pytest.fixture
def backend() -> Backend:
    loaded = load(checkpoint(), dtype="float32", max_model_len=40, max_batch_tokens=50)
    loaded.allocate_kv(6)
    return loaded


def one(backend: Backend, row: PlanRow) -> int | None:
    (result,) = backend.run(Plan((row,))).rows
    assert result.error is None
    return result.token


def test_sizes(backend: Backend) -> None:
    assert backend.vocab_size == 19
    assert backend.kv_block_bytes == 16 * 2 * 2 * 1 * 4 * 4
    assert {item.name: item.bytes for item in backend.memory()}["KV cache"] == 6 * backend.kv_block_bytes


def test_seeded_choice_is_the_same_in_any_batch(backend: Backend) -> None:
    rows = [
        PlanRow(i, [i, i + 3, 7], 0, [i], RowSampling(temperature=1.5, seed=i, position=3, logprobs=3))
        for i in range(5)
    ]
    together = backend.run(Plan(tuple(rows))).rows
    for row, expected in reversed(list(zip(rows, together, strict=True))):
        assert backend.run(Plan((replace(row, blocks=[5]),))).rows == [expected]


def test_a_chunk_that_ends_no_prompt_gives_no_token(backend: Backend) -> None:
    assert one(backend, PlanRow(1, [3, 4], 0, [0])) is None
    assert one(backend, PlanRow(1, [5], 2, [0], GREEDY)) is not None


def test_an_impossible_row_fails_alone(backend: Backend) -> None:
    good = PlanRow(1, [3, 4], 0, [0], GREEDY)
    bad = PlanRow(2, [3, 4], 0, [1], RowSampling(allowed=[]))
    first, second, third = backend.run(Plan((good, bad, good))).rows
    assert second.error is not None
    assert "allowed_token_ids" in second.error
    assert first == third == backend.run(Plan((good,))).rows[0]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan((PlanRow(1, [3], 0, [6], GREEDY),)), "KV block"),
        (Plan((PlanRow(1, [3], 0, [-1], GREEDY),)), "KV block"),
        (Plan((PlanRow(1, [3], 0, [0], GREEDY),), copies=((0, 6),)), "KV block"),
        (Plan((PlanRow(1, [19], 0, [0], GREEDY),)), "token id"),
        (Plan((PlanRow(1, [1], 0, [0], targets=[-1]),)), "token id"),
        (Plan((PlanRow(1, [1], 40, [0, 1, 2], GREEDY),)), "positions"),
        (Plan(tuple(PlanRow(i, [1] * 17, 0, [0, 1], GREEDY) for i in range(3))), "the limit is 50"),
    ],
)
def test_refused_plans(backend: Backend, plan: Plan, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        backend.run(plan)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    with pytest.raises(ModelFileError, match=r"layers\.1\.up"):
        load(checkpoint(value), dtype="float32", max_model_len=40, max_batch_tokens=50)


def test_other_precisions_are_refused() -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        load(checkpoint(), dtype="bfloat16", max_model_len=40, max_batch_tokens=50)


def test_kv_is_allocated_once_and_close_is_idempotent(backend: Backend) -> None:
    with pytest.raises(EngineError, match="already"):
        backend.allocate_kv(3)
    backend.close()
    backend.close()
    assert all(item.bytes == 0 for item in backend.memory())
