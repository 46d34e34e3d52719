"""Stored tensors to float32, in NumPy: every storage type of `headrace.weights.spec.DType`.

The block layouts are those of the GGUF specification (ggml-common.h); all numbers are little-endian. Written apart from
`native/dequant.cpp`, so that each can be checked against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from headrace.weights.spec import BLOCK_LAYOUT, DType, Tensor

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
"""[blocks, bytes of one block]"""


def dequantize(tensor: Tensor) -> Floats:
    """The tensor's values, in its shape."""
    raw = np.frombuffer(tensor.data, dtype=np.uint8)
    _, size = BLOCK_LAYOUT[tensor.dtype]
    values = _READERS[tensor.dtype](raw.reshape(-1, size))
    return values.astype(np.float32, copy=False).reshape(tensor.shape)


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte ``at`` of every block, as [blocks, 1]."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> NDArray[np.int32]:
    """Low halves of all bytes, then the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int32)


def _bits(packed: Bytes) -> NDArray[np.int32]:
    """Bit i of a little-endian integer as entry i."""
    return np.unpackbits(packed, axis=-1, bitorder="little").astype(np.int32)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.copy().view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8).astype(np.float32)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 6:]) + 16 * _bits(blocks[:, 2:6]) - 16
    return _half(blocks, 0) * q.astype(np.float32)


def _q5_1(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 8:]) + 16 * _bits(blocks[:, 4:8])
    return _half(blocks, 0) * q.astype(np.float32) + _half(blocks, 2)


def _scales_and_mins(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit minima from 12 bytes: the last four of each have their top two bits apart."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=1)
    mins = np.concatenate([middle & 63, (high >> 4) | (middle >> 6) << 4], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _k_blocks(blocks: Bytes, q: NDArray[np.int32]) -> Floats:
    """Q4_K and Q5_K: eight runs of 32 integers [blocks, 8, 32], each with its scale and minimum."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    scales, mins = _half(blocks, 0) * scales, _half(blocks, 2) * mins
    return scales[:, :, None] * q.astype(np.float32) - mins[:, :, None]


def _q4_k(blocks: Bytes) -> Floats:
    return _k_blocks(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    high = _bits(blocks[:, 16:48, None]).transpose(0, 2, 1)  # bit j of byte i belongs to integer i of run j
    return _k_blocks(blocks, low + 16 * high)


def _q6_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 8, 32)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = (pairs >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3).reshape(-1, 8, 32).astype(np.int32)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return scales[:, :, None] * (low + 16 * high - 32).reshape(-1, 16, 16).astype(np.float32)


_READERS: Mapping[DType, Callable[[Bytes], Floats]] = {
    DType.F32: lambda blocks: blocks.copy().view("<f4"),
    DType.F16: lambda blocks: _half(blocks, 0),
    DType.BF16: _bf16,
    DType.Q8_0: _q8_0,
    DType.Q4_0: _q4_0,
    DType.Q4_1: _q4_1,
    DType.Q5_0: _q5_0,
    DType.Q5_1: _q5_1,
    DType.Q4_K: _q4_k,
    DType.Q5_K: _q5_k,
    DType.Q6_K: _q6_k,
}
