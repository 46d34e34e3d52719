"""Products with integer activations: against their arithmetic in NumPy, and the same bits however rows are batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from msgspec.structs import replace

from headrace.backends.cpu.backend import CpuBackend, load
from headrace.errors import ConfigError, ModelFileError
from headrace.types import GREEDY, Plan, PlanRow
from headrace.weights.spec import BLOCK_LAYOUT, Checkpoint, DType, Tensor
from tests.backends.cpu.integers import reference
from tests.backends.cpu.models import all_logprobs, chunk_rows, logprobs_of, prompt, whole
from tests.backends.cpu.test_quantised import QUANTISED, SMALL, UNTIED, WIDE, stored_as

PLANES = {"int8": 1, "int16": 2}
FAR = {"int8": 0.3, "int16": 2e-3}
"""Logprobs. A rounding of an activation that falls the other way is a step of 1/127 or 1/32512 of the row's largest."""
Make = Callable[..., CpuBackend]


@pytest.fixture(params=PLANES)
def activations(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def integers(isa: str, activations: str) -> Iterator[Make]:
    loaded: list[CpuBackend] = []

    def build(model: Checkpoint, blocks: int = 80, dtype: str = "bfloat16", threads: int = 2) -> CpuBackend:
        backend = load(
            model,
            dtype=dtype,
            threads=threads,
            isa=isa,
            max_model_len=256,
            max_batch_tokens=256,
            activations=activations,
        )
        loaded.append(backend)
        backend.allocate_kv(blocks)
        return backend

    yield build
    for backend in loaded:
        backend.close()


def far(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max())


@pytest.mark.parametrize("stored", QUANTISED)
def test_agrees_with_its_arithmetic(stored: DType, integers: Make, activations: str) -> None:
    spec = WIDE if BLOCK_LAYOUT[stored][0] == 256 else SMALL
    cp, _ = stored_as(spec, stored)
    oracle = reference(cp, PLANES[activations])
    backends = [(integers(cp, dtype="float32"), FAR[activations]), (integers(cp), 0.1 + 2 * FAR[activations])]
    for tokens in (prompt(spec, 1), prompt(spec, 40)):
        want = whole(oracle, spec, tokens)
        for backend, tolerance in backends:
            assert far(whole(backend, spec, tokens), want) < tolerance


def test_mixed_types_and_an_untied_head(integers: Make, activations: str) -> None:
    """Bytes and nibbles side by side in a panel; matrices with float parts stay as they were."""
    cp, _ = stored_as(UNTIED, DType.Q4_0, DType.Q8_0, DType.Q4_1, DType.Q5_1)
    tokens = prompt(UNTIED, 33)
    want = whole(reference(cp, PLANES[activations]), UNTIED, tokens)
    assert far(whole(integers(cp, dtype="float32"), UNTIED, tokens), want) < FAR[activations]
    floats, plain = stored_as(UNTIED, DType.F32)
    np.testing.assert_array_equal(whole(integers(floats), UNTIED, tokens), whole(integers(plain), UNTIED, tokens))


MIXED = [DType.Q4_1, DType.Q8_0, DType.Q4_0, DType.Q4_1]


@pytest.mark.parametrize("kinds", [[DType.Q8_0], [DType.Q4_0], [DType.Q4_1], MIXED], ids=["8", "4", "4+", "mixed"])
def test_any_number_of_rows(kinds: list[DType], integers: Make) -> None:
    """Decode steps of 1 to 70 rows: every row is what it is alone."""
    cp, _ = stored_as(SMALL, *kinds)
    backend = integers(cp)
    rows = []
    for i in range(70):
        tokens = prompt(SMALL, 2 + i % 13, i)
        first, last = chunk_rows(SMALL, tokens, [len(tokens) - 1], (i,), i)
        logprobs_of(backend, [first])
        rows.append(last)
    alone = [logprobs_of(backend, [row])[0] for row in rows]
    for n in [2, 3, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70]:
        for got, want in zip(logprobs_of(backend, rows[-n:]), alone[-n:], strict=True):
            assert np.array_equal(got, want)


def test_chunks_and_threads_do_not_matter(integers: Make) -> None:
    cp, _ = stored_as(SMALL, *MIXED)
    tokens = prompt(SMALL, 100)
    backend = integers(cp)
    alone = whole(backend, SMALL, tokens)
    for cuts in ([1, 2, 3, 10], [31, 33], [64], [99]):
        assert np.array_equal(whole(backend, SMALL, tokens, cuts), alone)
    for threads in (1, 5):
        assert np.array_equal(whole(integers(cp, threads=threads), SMALL, tokens), alone)


def test_a_fault_stays_in_its_row(integers: Make) -> None:
    """A row whose activations overflow ends in an error; its neighbours do not notice."""
    cp, _ = stored_as(SMALL, DType.Q8_0)
    raw = np.frombuffer(cp.tensors["embedding"].data, np.uint8).copy().reshape(SMALL.vocab_size, -1, 34)
    raw[5, :, :2] = np.float16(60000.0).reshape(1).view(np.uint8)
    norm = Tensor(DType.F32, (96,), memoryview(np.full(96, 3e38, np.float32).tobytes()))
    tensors = {**cp.tensors, "embedding": replace(cp.tensors["embedding"], source=memoryview(raw.tobytes()))}
    broken = replace(cp, tensors={**tensors, "layers.1.ffn_norm": norm})
    results = integers(broken).run(Plan((PlanRow(0, (5,), 0, (0,), GREEDY),))).rows
    assert results[0].error is not None
    fine = integers(replace(cp, tensors=tensors))
    row = PlanRow(1, (7,), 0, (1,), all_logprobs(SMALL))
    alone = logprobs_of(fine, [row])[0]
    together = fine.run(Plan((PlanRow(0, (5,), 0, (0,), GREEDY), row))).rows[1]
    assert together.logprobs is not None
    assert dict(together.logprobs.top) == {i: float(v) for i, v in enumerate(alone)}


def test_zero_rows_and_weights(integers: Make) -> None:
    """Nothing is divided by nothing."""
    cp, _ = stored_as(SMALL, DType.Q8_0, DType.Q4_0)
    zero = {
        name: replace(t, source=memoryview(bytes(t.nbytes))) if name.endswith((".o", ".up", "embedding")) else t
        for name, t in cp.tensors.items()
    }
    values = whole(integers(replace(cp, tensors=zero)), SMALL, prompt(SMALL, 9))
    np.testing.assert_allclose(values, -np.log(SMALL.vocab_size), rtol=1e-6)


@pytest.mark.parametrize("stored", [DType.Q8_0, DType.Q4_1, DType.Q4_K])
def test_a_scale_that_is_not_finite_is_named(stored: DType) -> None:
    cp, _ = stored_as(WIDE, stored)
    raw = bytearray(cp.tensors["layers.0.up"].data)
    raw[:2] = np.float16(np.inf).tobytes()
    tensors = {**cp.tensors, "layers.0.up": replace(cp.tensors["layers.0.up"], source=memoryview(bytes(raw)))}
    with pytest.raises(ModelFileError, match=r"layers\.0\.up has a value that is NaN or infinite"):
        load(
            replace(cp, tensors=tensors),
            dtype="bfloat16",
            max_model_len=16,
            max_batch_tokens=16,
            activations="int16",
        )


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(ConfigError, match="int4"):
        load(
            stored_as(SMALL, DType.Q8_0)[0], dtype="bfloat16", max_model_len=16, max_batch_tokens=16, activations="int4"
        )
