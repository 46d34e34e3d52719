from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from headrace.backends.cpu.abi import available_isas
from headrace.backends.cpu.backend import CpuBackend, load
from headrace.weights.spec import Checkpoint, ModelSpec
from tests.backends.cpu.models import checkpoint

Loader = Callable[..., CpuBackend]


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make(isa: str, dtype: str) -> Iterator[Loader]:
    """Loads a model or specification on the test's instruction set and precision, with KV; closed after the test."""
    loaded: list[CpuBackend] = []

    def build(model: ModelSpec | Checkpoint, blocks: int = 64, threads: int = 2, kv_dtype: str = "auto") -> CpuBackend:
        source = model if isinstance(model, Checkpoint) else checkpoint(model)
        backend = load(
            source,
            dtype=dtype,
            threads=threads,
            isa=isa,
            max_model_len=1280,
            max_batch_tokens=1280,
            kv_dtype=kv_dtype,
        )
        loaded.append(backend)
        backend.allocate_kv(blocks)
        return backend

    yield build
    for backend in loaded:
        backend.close()
