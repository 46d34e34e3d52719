"""Quantised weights stay in memory as they are; every result has the bits of the same model with expanded weights."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Stored
from gguf.quants import dequantize
from msgspec.structs import replace

from headrace.backends.cpu import abi
from headrace.backends.cpu.backend import CpuBackend, load
from headrace.backends.cpu.quantize import SCHEMES, quantized
from headrace.errors import ConfigError, ModelFileError
from headrace.types import GREEDY, Plan, PlanRow
from headrace.weights.spec import BLOCK_LAYOUT, Checkpoint, DType, ModelSpec, Tensor
from tests.backends.cpu.conftest import Loader
from tests.backends.cpu.models import BASE, checkpoint, prompt, rope, whole

QUANTISED = [dtype for dtype, (elements, _) in BLOCK_LAYOUT.items() if elements > 1]
FLOATS = [dtype for dtype in DType if dtype not in QUANTISED]

WIDE = replace(BASE, hidden_size=256, num_heads=8, num_kv_heads=2, head_dim=32, ffn_size=512, ropes=(rope(16),))
"""Rows of whole K blocks."""
SMALL = replace(BASE, vocab_size=131, ffn_size=224)
"""Rows of whole blocks of 32; 96 columns of q, 32 of k: strips of two tensors share panels."""
UNTIED = replace(SMALL, tied_embeddings=False)

SCALES_AT = {DType.Q4_1: (0, 2), DType.Q5_1: (0, 2), DType.Q4_K: (0, 2), DType.Q5_K: (0, 2), DType.Q6_K: (208,)}
MIDDLE = {DType.Q4_1: -7.5, DType.Q5_1: -15.5, DType.Q4_K: 7.5, DType.Q5_K: 15.5, DType.Q6_K: 0.0}


def blocks(shape: tuple[int, ...], dtype: DType, rng: np.random.Generator) -> Tensor:
    """Random blocks: every bit of quants and scales is used, and values are about as large as a layer's should be."""
    elements, size = BLOCK_LAYOUT[dtype]
    data = rng.integers(0, 256, (int(np.prod(shape)) // elements, size), dtype=np.uint8)

    def rescale(factor: float) -> np.ndarray:
        spread = rng.uniform(0.5, 1.5, (len(data), 1)) * factor
        for i, at in enumerate(SCALES_AT.get(dtype, (0,))):
            scales = spread * (MIDDLE[dtype] if i else 1.0)
            data[:, at : at + 2] = scales.astype(np.float16).view(np.uint8)
        values: np.ndarray = dequantize(data, Stored[dtype.value])
        return values

    wanted = 1.2 / np.sqrt(shape[1])
    rescale(2.0**-8 * wanted / float(rescale(2.0**-8).std()))
    return Tensor(dtype, shape, memoryview(data.tobytes()))


def expanded(t: Tensor) -> Tensor:
    if t.dtype in FLOATS:
        return t
    raw = np.frombuffer(t.data, np.uint8).reshape(t.shape[0], -1)
    return Tensor(DType.F32, t.shape, memoryview(dequantize(raw, Stored[t.dtype.value]).astype(np.float32).tobytes()))


def stored_as(spec: ModelSpec, *dtypes: DType) -> tuple[Checkpoint, Checkpoint]:
    """A model with matrices of the given types in turn, and the same one expanded."""
    cp, rng = checkpoint(spec), np.random.default_rng(3)
    matrices = [name for name, t in cp.tensors.items() if len(t.shape) == 2]
    kinds = dict(zip(matrices, dtypes * len(matrices), strict=False))
    tensors = {
        name: blocks(t.shape, kinds[name], rng) if kinds.get(name, DType.F32) in QUANTISED else t
        for name, t in cp.tensors.items()
    }
    return replace(cp, tensors=tensors), replace(cp, tensors={name: expanded(t) for name, t in tensors.items()})


def same(make: Loader, spec: ModelSpec, kept: Checkpoint, plain: Checkpoint) -> CpuBackend:
    """Both give the same bits for each number of rows up to 9 and for many; every token's embedding is looked up."""
    one, other = make(kept, 16), make(plain, 16)
    for tokens in (tuple(range(spec.vocab_size)), prompt(spec, 50)):
        cuts = [len(tokens) - rows * (rows + 1) // 2 for rows in range(9, 0, -1)]
        np.testing.assert_array_equal(whole(one, spec, tokens, cuts), whole(other, spec, tokens, cuts))
    return one


@pytest.mark.parametrize("stored", QUANTISED)
def test_bits_of_every_type(stored: DType, make: Loader) -> None:
    spec = WIDE if BLOCK_LAYOUT[stored][0] == 256 else SMALL
    same(make, spec, *stored_as(spec, stored))


@pytest.mark.parametrize("spec", [WIDE, replace(WIDE, tied_embeddings=False)], ids=["tied", "untied"])
def test_bits_of_mixed_types(spec: ModelSpec, make: Loader) -> None:
    """As many types as there are, one tensor after the other: q, k and v, gate and up differ, some are floats."""
    same(make, spec, *stored_as(spec, *QUANTISED, DType.F32))


def test_bits_of_strips_beside_floats(make: Loader) -> None:
    """Where 16 columns of floats and 16 quantised ones share a panel, both are tiles."""
    spec = replace(SMALL, num_heads=3, num_kv_heads=1)
    outer, q, k, v, o, gate, up = DType.Q4_1, DType.F32, DType.Q8_0, DType.Q4_1, DType.F32, DType.Q8_0, DType.F32
    same(make, spec, *stored_as(spec, outer, q, k, v, o, gate, up))


def test_extreme_scales_are_exact(make: Loader) -> None:
    """The smallest and largest float16 scales, negative ones and zero."""
    cp, rng = checkpoint(SMALL), np.random.default_rng(4)
    down = "layers.1.down"
    for dtype in (DType.Q8_0, DType.Q4_0, DType.Q4_1, DType.Q5_0, DType.Q5_1):
        t = blocks(cp.tensors[down].shape, dtype, rng)
        raw = np.frombuffer(t.data, np.uint8).copy().reshape(-1, BLOCK_LAYOUT[dtype][1])
        halves = np.array([1, 3, 0x3FF, 0x400, 0x7BFF, 0x8000, 0, 0x8001, 0xFBFF, 0x3C01], np.uint16)
        for at in SCALES_AT.get(dtype, (0,)):
            raw[:, at : at + 2] = halves[rng.integers(0, len(halves), (len(raw), 1))].view(np.uint8)
        kept = {**cp.tensors, down: replace(t, source=memoryview(raw.tobytes()))}
        plain = {**kept, down: expanded(kept[down])}
        same(make, SMALL, replace(cp, tensors=kept), replace(cp, tensors=plain))


@pytest.mark.parametrize("name", ["embedding", "layers.1.v", "layers.0.up"])
@pytest.mark.parametrize("stored", QUANTISED)
def test_a_scale_that_is_not_finite_is_named(stored: DType, name: str) -> None:
    spec = WIDE if BLOCK_LAYOUT[stored][0] == 256 else SMALL
    cp, _ = stored_as(spec, stored)
    for at in SCALES_AT.get(stored, (0,)):
        for bad in (np.nan, np.inf, -np.inf):
            raw = bytearray(cp.tensors[name].data)
            start = len(raw) - BLOCK_LAYOUT[stored][1] + at
            raw[start : start + 2] = np.float16(bad).tobytes()
            broken = replace(cp.tensors[name], source=memoryview(bytes(raw)))
            with pytest.raises(ModelFileError, match=f"{name} has a value that is NaN or infinite"):
                load(
                    replace(cp, tensors={**cp.tensors, name: broken}),
                    dtype="bfloat16",
                    max_model_len=16,
                    max_batch_tokens=16,
                )


def weights_bytes(cp: Checkpoint, quantize: str | None = None) -> int:
    backend = load(cp, dtype="bfloat16", max_model_len=16, max_batch_tokens=16, quantize=quantize)
    sizes = {item.name: item.bytes for item in backend.memory()}
    backend.close()
    return sizes["weights"]


@pytest.mark.parametrize(
    ("stored", "bits"),
    list(zip(QUANTISED, (8.5, 4.5, 5, 8.5, 9, 4.63, 8.63, 8.57), strict=True)),
)
def test_memory_is_what_the_file_takes(stored: DType, bits: float) -> None:
    """Five and six bits are kept in eight."""
    spec = replace(WIDE, vocab_size=512)
    assert weights_bytes(stored_as(spec, stored)[0]) < 1.03 * spec.parameters * bits / 8


@pytest.mark.parametrize("spec", [SMALL, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("option", ["int8", "int4"])
def test_quantising_at_load_is_quantising_the_file(option: str, spec: ModelSpec) -> None:
    cp = checkpoint(spec)
    file = replace(cp, tensors={name: quantized(name, t, SCHEMES[option]) for name, t in cp.tensors.items()})
    results = []
    for source, quantize in ((cp, option), (file, None)):
        backend = load(source, dtype="float32", max_model_len=64, max_batch_tokens=64, quantize=quantize)
        backend.allocate_kv(4)
        results.append(whole(backend, spec, prompt(spec, 30)))
        backend.close()
    np.testing.assert_array_equal(results[0], results[1])
    large = checkpoint(replace(WIDE, vocab_size=512))
    assert weights_bytes(large, option) < (0.55 if option == "int8" else 0.4) * weights_bytes(large)


def test_rows_that_no_block_divides_stay_as_they_are() -> None:
    spec = replace(BASE, hidden_size=72, ffn_size=96, num_heads=3, num_kv_heads=3, head_dim=24, ropes=(rope(12),))
    plain = weights_bytes(checkpoint(spec))
    assert plain > weights_bytes(checkpoint(spec), "int8") > 0.6 * plain


def test_quantising_leaves_quantised_tensors_alone() -> None:
    kept, _ = stored_as(SMALL, DType.Q4_0)
    assert weights_bytes(kept, "int8") == weights_bytes(kept)


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ConfigError, match="int3"):
        weights_bytes(checkpoint(BASE), "int3")
    cp = checkpoint(BASE)
    large = Tensor(DType.F32, (96, 160), memoryview(np.full((96, 160), 1e9, np.float32).tobytes()))
    with pytest.raises(ModelFileError, match=r"layers\.0\.down"):
        weights_bytes(replace(cp, tensors={**cp.tensors, "layers.0.down": large}), "int8")


@pytest.mark.parametrize("isa", abi.available_isas())
def test_rows_are_their_own(isa: str) -> None:
    """Alone, among others, and in a batch of several row blocks."""
    kept, _ = stored_as(SMALL, DType.Q4_1, DType.Q8_0)
    backend = load(kept, dtype="bfloat16", max_model_len=64, max_batch_tokens=128, isa=isa)
    backend.allocate_kv(80)
    rows = tuple(PlanRow(i, prompt(SMALL, 1 + i % 3, i), 0, (i,), GREEDY) for i in range(50))
    together = backend.run(Plan(rows)).rows
    assert [backend.run(Plan((row,))).rows[0] for row in rows] == list(together)
    backend.close()
