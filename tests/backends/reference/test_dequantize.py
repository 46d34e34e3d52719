"""Every storage type against the `gguf` package, bit for bit."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.backends.reference.dequantize import dequantize
from headrace.weights.spec import BLOCK_LAYOUT, DType, Tensor

HALVES = {
    DType.Q8_0: (0,), DType.Q4_0: (0,), DType.Q4_1: (0, 2), DType.Q5_0: (0,), DType.Q5_1: (0, 2),
    DType.Q4_K: (0, 2), DType.Q5_K: (0, 2), DType.Q6_K: (208,),
}  # fmt: skip
"""Where a block holds its float16 scales: random bytes there would make NaNs."""


@pytest.mark.parametrize("dtype", list(DType))
def test_values(dtype: DType) -> None:
    rng = np.random.default_rng(1)
    elements, size = BLOCK_LAYOUT[dtype]
    blocks = rng.integers(0, 256, (3 * 512, size), dtype=np.uint8)
    if elements == 1:
        floats = rng.normal(0, 1, 3 * 512).astype(np.float32)
        bits: dict[DType, NDArray[Any]] = {
            DType.F32: floats.view(np.uint32),
            DType.F16: floats.astype(np.float16).view(np.uint16),
            DType.BF16: (floats.view(np.uint32) >> 16).astype(np.uint16),
        }
        blocks = bits[dtype].view(np.uint8).reshape(-1, size)
    for at in HALVES.get(dtype, ()):
        blocks[:, at : at + 2] = rng.normal(0, 1, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    tensor = Tensor(dtype, (3, 512 * elements), memoryview(blocks.tobytes()))
    expected = gguf.quants.dequantize(blocks.reshape(3, -1), gguf.GGMLQuantizationType[dtype.value])
    np.testing.assert_array_equal(dequantize(tensor), expected)
