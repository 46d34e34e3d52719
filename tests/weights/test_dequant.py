"""The native expansion of stored weights against the `gguf` package's, bit for bit."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

import headrace.backends.cpu
from headrace.weights.spec import BLOCK_LAYOUT, DType

CODES = {dtype: code for code, dtype in enumerate(DType)}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    folder = Path(headrace.backends.cpu.__file__).parent
    found = sorted(folder.glob("libheadrace.*"))
    if not found:
        pytest.fail(f"the native library is not built: no libheadrace in {folder}")
    library = ctypes.CDLL(str(found[0]))
    library.hr_dequantize.restype = ctypes.c_bool
    library.hr_dequantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    return library


def dequantize(library: ctypes.CDLL, code: int, data: np.ndarray, n: int) -> np.ndarray | None:
    """The library's float32 values, or None when it refuses. Guard values show a write past the end."""
    out = np.full(n + 8, 7.0, dtype=np.float32)
    done = library.hr_dequantize(code, data.ctypes.data, out.ctypes.data, n)
    assert (out[n:] == 7.0).all()
    return out[:n] if done else None


@pytest.mark.parametrize("dtype", list(DType))
def test_random_blocks_expand_as_the_reference(library: ctypes.CDLL, dtype: DType) -> None:
    elements, size = BLOCK_LAYOUT[dtype]
    blocks = 96 * 256 // elements
    data = np.random.default_rng(7).integers(0, 256, blocks * size, dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data.reshape(-1, 8 * size), gguf.GGMLQuantizationType[dtype.value])
    expected = np.asarray(expected, dtype=np.float32).reshape(-1)
    got = dequantize(library, CODES[dtype], data, blocks * elements)
    assert got is not None
    assert np.isfinite(expected).mean() > 0.5
    nan = np.isnan(expected)
    assert (np.isnan(got) == nan).all()
    np.testing.assert_array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_every_half_is_exact(library: ctypes.CDLL) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    got = dequantize(library, CODES[DType.F16], halves, halves.size)
    assert got is not None
    np.testing.assert_array_equal(got, halves.view(np.float16).astype(np.float32))


def test_unaligned_source(library: ctypes.CDLL) -> None:
    elements, size = BLOCK_LAYOUT[DType.Q6_K]
    data = np.random.default_rng(3).integers(0, 120, size + 1, dtype=np.uint8)
    got = dequantize(library, CODES[DType.Q6_K], data[1:], elements)
    expected = dequantize(library, CODES[DType.Q6_K], data[1:].copy(), elements)
    assert got is not None
    assert expected is not None
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("code", "n"), [(-1, 32), (len(DType), 32), (CODES[DType.Q4_K], 255), (0, -32)])
def test_nonsense_is_refused(library: ctypes.CDLL, code: int, n: int) -> None:
    out = np.zeros(256, dtype=np.float32)
    assert not library.hr_dequantize(code, out.ctypes.data, out.ctypes.data, n)
