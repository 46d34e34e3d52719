"""What the backend refuses, and how it says so."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from headrace.backends.cpu import abi
from headrace.backends.cpu.backend import CpuBackend, load
from headrace.errors import ConfigError, EngineError, HeadraceError, MemoryPlanError, ModelFileError
from headrace.types import GREEDY, Plan, PlanRow, RowSampling
from headrace.weights.spec import Checkpoint, DType, Tensor
from tests.backends.cpu.models import BASE, checkpoint, tensor


def small(cp: Checkpoint | None = None, dtype: str = "float32", isa: str | None = None) -> CpuBackend:
    return load(cp or checkpoint(BASE), dtype=dtype, max_model_len=64, max_batch_tokens=20, threads=1, isa=isa)


def changed(name: str, value: Tensor | None) -> Checkpoint:
    cp = checkpoint(BASE)
    tensors = {k: v for k, v in cp.tensors.items() if k != name}
    return replace(cp, tensors=tensors if value is None else {**tensors, name: value})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["layers.1.down", "layers.0.q", "embedding", "layers.1.ffn_norm"])
def test_a_weight_that_is_not_finite_is_named(name: str, bad: float) -> None:
    t = checkpoint(BASE).tensors[name]
    values = np.frombuffer(t.data, np.float32).reshape(t.shape).copy()
    values.flat[-1] = bad
    for isa in abi.available_isas():
        for dtype in ("float32", "bfloat16"):
            with pytest.raises(ModelFileError, match=f"{name} has a value that is NaN or infinite"):
                small(changed(name, tensor(values)), dtype, isa)


def test_a_weight_that_overflows_bf16_is_refused() -> None:
    values = np.full((96, 160), np.finfo(np.float32).max, np.float32)
    with pytest.raises(ModelFileError, match=r"layers\.0\.down"):
        small(changed("layers.0.down", tensor(values)), "bfloat16")
    small(changed("layers.0.down", tensor(values))).close()


def test_missing_unknown_and_misshapen_tensors() -> None:
    with pytest.raises(ModelFileError, match=r"layers\.1\.up is missing"):
        small(changed("layers.1.up", None))
    with pytest.raises(ModelFileError, match=r"layers\.0\.o has shape \[96, 95\], expected \[96, 96\]"):
        small(changed("layers.0.o", tensor(np.zeros((96, 95), np.float32))))
    with pytest.raises(ModelFileError, match="no layer 2"):
        small(changed("layers.2.o", tensor(np.zeros((96, 96), np.float32))))
    with pytest.raises(ModelFileError, match="not a tensor of the specification"):
        small(changed("layers.0.experts", tensor(np.zeros((96, 96), np.float32))))
    with pytest.raises(ModelFileError, match="has no tensor lm_head"):
        small(changed("lm_head", tensor(np.zeros((99, 96), np.float32))))
    short = Tensor(DType.F32, (96, 96), memoryview(bytes(4 * 96 * 96 - 4)))
    with pytest.raises(ModelFileError, match="bytes do not hold"):
        small(changed("layers.0.o", short))


def test_settings() -> None:
    with pytest.raises(ConfigError, match="float16"):
        small(dtype="float16")
    with pytest.raises(ConfigError, match="avx1024"):
        small(isa="avx1024")
    with pytest.raises(HeadraceError, match="head_dim"):
        small(checkpoint(replace(BASE, head_dim=1024, num_heads=1, num_kv_heads=1)))


def test_plans_out_of_range() -> None:
    backend = small()
    with pytest.raises(EngineError, match="outside the pool of 0"):
        backend.run(Plan((PlanRow(0, (1,), 0, (0,), GREEDY),)))
    backend.allocate_kv(4)
    good = PlanRow(0, (1, 2), 0, (0,), GREEDY)
    want = backend.run(Plan((good,)))
    cases = {
        "token id 99 is outside": PlanRow(1, (99,), 0, (1,)),
        "token id -1 is outside": PlanRow(1, (-1,), 0, (1,)),
        "target id 99 is outside": PlanRow(1, (1, 2), 0, (1,), None, (99,)),
        "block 4 is outside the pool of 4": PlanRow(1, (1,), 0, (4,)),
        "block -1 is outside": PlanRow(1, (1,), 0, (-1,)),
        "exceed the context of 64": PlanRow(1, (1,), 64, (1, 1, 1, 1, 1)),
        "exceeds the 20 that were allowed for": PlanRow(1, (1,) * 21, 0, (1, 2)),
        "bad number of logprobs": PlanRow(1, (1,), 0, (1,), RowSampling(logprobs=100)),
        "bad number of target logprobs": PlanRow(1, (1,), 0, (1,), None, (1,), 100),
        "no 32-bit integer": PlanRow(1, (2**31,), 0, (1,)),
    }
    for message, row in cases.items():
        with pytest.raises(EngineError, match=message):
            backend.run(Plan((good, row)))
        with pytest.raises(EngineError, match=message):
            backend.run(Plan((row,)))
    with pytest.raises(EngineError, match="block 7 is outside"):
        backend.run(Plan((good,), copies=((0, 7),)))
    assert backend.run(Plan((good,))) == want


def test_a_rows_own_fault_is_its_own() -> None:
    backend = small()
    backend.allocate_kv(4)
    good = PlanRow(0, (1, 2), 0, (0,), RowSampling(temperature=1.0, seed=1))
    banned = PlanRow(1, (1, 2), 0, (1,), RowSampling(allowed=()))
    outside = PlanRow(2, (1, 2), 0, (2,), RowSampling(bias={99: 1.0}))
    alone = backend.run(Plan((good,))).rows[0]
    results = backend.run(Plan((banned, good, outside))).rows
    assert results[0].error
    assert results[2].error
    assert results[1] == alone


def test_the_pool_is_allocated_once_and_within_reason() -> None:
    backend = small()
    for blocks in (0, -1, 2**40):
        with pytest.raises(MemoryPlanError):
            backend.allocate_kv(blocks)
    backend.allocate_kv(1)
    with pytest.raises(MemoryPlanError, match="once"):
        backend.allocate_kv(1)


def test_close_is_idempotent_and_final() -> None:
    backend = small()
    backend.close()
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        backend.run(Plan((PlanRow(0, (1,), 0, (0,), GREEDY),)))


def test_progress_reaches_one() -> None:
    seen: list[float] = []
    load(checkpoint(BASE), dtype="float32", max_model_len=16, max_batch_tokens=16, progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
