"""Native quantisation: against the `gguf` package bit for bit, and against what least squares promises."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Stored
from numpy.typing import NDArray

from headrace.backends.cpu import abi
from headrace.backends.cpu.quantize import FIT, ROUND, SCHEMES, Scheme, quantized
from headrace.backends.reference.dequantize import dequantize
from headrace.errors import ModelFileError
from headrace.weights.spec import BLOCK_LAYOUT, DType, Tensor

TYPES = (DType.Q8_0, DType.Q4_0, DType.Q4_1)
Array = NDArray[np.float32]


def awkward(rng: np.random.Generator) -> Array:
    """Rows of every kind: ordinary, zero, constant, tiny, huge, with ties for the extreme value, exact halves."""
    x = rng.standard_normal((64, 96)).astype(np.float32) * np.float32(0.05)
    x[1] = 0
    x[2] = 0.3
    x[3] *= 1e-6
    x[4] *= 1e-9
    x[5] *= 1e4
    x[6] = np.sign(x[6]) * np.float32(0.7)
    x[7] = np.round(x[7] * 512) / 8
    x[8] = -np.abs(x[8])
    x[9, ::32] = 100
    return x


def stored(x: Array, dtype: DType = DType.F32) -> Tensor:
    if dtype is DType.BF16:
        return Tensor(dtype, x.shape, memoryview((x.view(np.uint32) >> 16).astype(np.uint16).tobytes()))
    return Tensor(dtype, x.shape, memoryview((x.astype(np.float16) if dtype is DType.F16 else x).tobytes()))


@pytest.mark.parametrize("dtype", TYPES)
def test_rounding_equals_the_gguf_package(dtype: DType) -> None:
    x = awkward(np.random.default_rng(3))
    expected = gguf.quants.quantize(x, Stored[dtype.value])
    ours = quantized("layers.0.q", stored(x), Scheme(dtype, dtype))
    assert (ours.dtype, ours.shape) == (dtype, x.shape)
    np.testing.assert_array_equal(np.frombuffer(ours.data, np.uint8), expected.reshape(-1))


@pytest.mark.parametrize("source", [DType.F16, DType.BF16])
def test_from_half_precision(source: DType) -> None:
    x = awkward(np.random.default_rng(4))
    tensor = stored(x, source)
    widened = stored(np.ascontiguousarray(dequantize(tensor)))
    for scheme in SCHEMES.values():
        assert quantized("o", tensor, scheme).data == quantized("o", widened, scheme).data


def test_a_chunk_border_changes_nothing() -> None:
    x = np.random.default_rng(5).standard_normal((3, 4096 + 32)).astype(np.float32)
    whole = quantized("o", stored(x), SCHEMES["int4"])
    rows = [quantized("o", stored(x[i : i + 1]), SCHEMES["int4"]).data for i in range(3)]
    assert bytes(whole.data) == b"".join(rows)


def squared_errors(x: Array, method: int) -> NDArray[np.float64]:
    ours = dequantize(quantized("o", stored(x), Scheme(DType.Q4_1, DType.Q4_1, method)))
    errors = (ours.astype(np.float64) - x).reshape(-1, 32) ** 2
    return np.asarray(errors.sum(1))


def test_fitting_is_better_than_rounding() -> None:
    rng = np.random.default_rng(6)
    for x in (rng.standard_normal((256, 256)), rng.standard_t(4, (256, 256)), rng.uniform(-1, 1, (256, 256))):
        fitted, rounded = (squared_errors(x.astype(np.float32), method) for method in (FIT, ROUND))
        # 15 steps, which rounding takes, is not among the candidates; nearly every block gains all the same.
        assert fitted.sum() < 0.9 * rounded.sum()
        assert np.mean(fitted <= rounded) > 0.9


def test_fitting_finds_a_grid_again() -> None:
    """Values that are on a float16 grid of 16 steps already come back as they were."""
    rng = np.random.default_rng(7)
    q = rng.integers(0, 16, (64, 32))
    q[:, 0], q[:, 1] = 0, 15
    scale, low = (rng.uniform(0.5, 1, (64, 1)).astype(np.float16).astype(np.float32) for _ in range(2))
    x = (scale * q.astype(np.float32) - low).astype(np.float32)
    ours = dequantize(quantized("o", stored(x), SCHEMES["int4"]))
    np.testing.assert_allclose(ours, x, rtol=0, atol=2e-3)


def test_fitting_awkward_blocks() -> None:
    x = awkward(np.random.default_rng(8))
    fitted, rounded = squared_errors(x, FIT), squared_errors(x, ROUND)
    spread = (x.reshape(-1, 32).max(1) - x.reshape(-1, 32).min(1)).astype(np.float64)
    assert (fitted <= 1.05 * rounded + 32 * (spread / 500) ** 2 + 1e-12 + 1e-6 * spread**2).all()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_no_scale_can_hold_is_refused(scheme: Scheme, value: float) -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, 40], x[1, 41] = value, -value
    with pytest.raises(ModelFileError, match=r"layers\.3\.up: cannot be quantised"):
        quantized("layers.3.up", stored(x), scheme)


def test_what_stays_as_it_is() -> None:
    x = np.ones((4, 48), np.float32)
    odd, vector = stored(x), Tensor(DType.F32, (192,), stored(x).data)
    done = quantized("o", stored(np.ones((4, 64), np.float32)), SCHEMES["int8"])
    for tensor in (odd, vector, done):
        assert quantized("o", tensor, SCHEMES["int4"]) is tensor


def test_the_embedding_and_the_head_keep_eight_bits() -> None:
    x = stored(np.ones((4, 64), np.float32))
    kinds = {name: quantized(name, x, SCHEMES["int4"]).dtype for name in ("embedding", "lm_head", "layers.0.q")}
    assert kinds == {"embedding": DType.Q8_0, "lm_head": DType.Q8_0, "layers.0.q": DType.Q4_1}


@pytest.mark.parametrize(
    ("dtype", "method", "n"), [(3, 2, 32), (3, -1, 32), (2, 0, 32), (6, 0, 32), (3, 0, 33), (3, 0, -32)]
)
def test_nonsense_is_refused(dtype: int, method: int, n: int) -> None:
    source, out = (ctypes.c_float * 64)(), (ctypes.c_char * 128)()
    native = abi.open_library().hr_quantize
    native.restype = ctypes.c_bool
    native.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)
    assert native(3, 0, source, out, 64)
    assert not native(dtype, method, source, out, n)


def test_the_layout_table_of_the_library_is_ours() -> None:
    """Every stored type goes through, read to its last byte and no further."""
    for dtype in DType:
        elements, size = BLOCK_LAYOUT[dtype]
        raw = np.zeros(4096 // elements * size + size * (256 // elements), np.uint8)
        out = np.full(4352 // 32 * 34 + 8, 7, np.uint8)
        native = abi.open_library().hr_requantize
        native.restype = ctypes.c_bool
        native.argtypes = (*(ctypes.c_int, ctypes.c_void_p, ctypes.c_int), ctypes.c_int, ctypes.c_void_p, ctypes.c_long)
        raw[-size:] = np.frombuffer(LAST[dtype], np.uint8)
        code = list(DType).index(dtype)
        assert native(code, raw.ctypes.data, list(DType).index(DType.Q8_0), ROUND, out.ctypes.data, 4352)
        assert (out[-8:] == 7).all()
        blocks = out[:-8].reshape(-1, 34)
        assert blocks[-1].any()
        assert not blocks[: -(elements // 32 or 1)].any()


def _last(dtype: DType) -> bytes:
    """A block of ones, or of something near it: whatever is not zero."""
    one = np.float16(1).tobytes()
    if dtype in (DType.F32, DType.BF16):
        return np.float32(1).tobytes()[-BLOCK_LAYOUT[dtype][1] :]
    body = BLOCK_LAYOUT[dtype][1] - 2
    return b"\x11" * body + one if dtype is DType.Q6_K else one + b"\x11" * body


LAST = {dtype: _last(dtype) for dtype in DType}
