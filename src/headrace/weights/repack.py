"""AWQ's and GPTQ's packed integers → GGUF blocks, by whole-row operations: no loop runs over single weights.

Both store a matrix as [in, out] (its transpose is what a backend wants) and pack several integers into each int32:
AWQ eight neighbouring outputs, GPTQ the four or eight neighbouring inputs. A block holds 32 inputs of one output; its
bytes at one place of all outputs are a strided slice of the result, and are cut from the packed rows with one shift and
mask of a big integer. About 5 ns a weight, nothing but the standard library.

Values are scale * (q - zero). With a zero of 8 that is Q4_0, exactly. With others it is Q4_1, whose minimum,
-scale * zero, is rounded to float16: an offset of at most 15 / 2048 of a step. Eight bits with zero 128 are Q8_0,
exactly.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from headrace.weights.spec import BLOCK_LAYOUT, DType

BLOCK = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs each nibble of an int32 is, lowest nibble first (AutoAWQ's gemm packing)."""
GPTQ_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
"""The same for GPTQ's zeros."""

_LOW = bytes(byte & 15 for byte in range(256))
_HIGH = bytes(byte >> 4 for byte in range(256))


def nibbles(row: memoryview, order: Sequence[int]) -> bytes:
    """The four-bit integers of packed int32s, as one byte each, in the order of the outputs."""
    raw = bytes(row)
    low, high = raw.translate(_LOW), raw.translate(_HIGH)
    out = bytearray(2 * len(raw))
    for byte in range(4):
        out[order[2 * byte] :: 8] = low[byte::4]
        out[order[2 * byte + 1] :: 8] = high[byte::4]
    return bytes(out)


def put_scales(out: bytearray, dtype: DType, scales: memoryview, zeros: Sequence[bytes], inputs: int) -> None:
    """Write every block's scale and, for Q4_1, its minimum.

    ``scales`` are float16 [groups, outputs]; ``zeros`` has a row of outputs for each group (unused by other types).

    Raises:
        OverflowError: a minimum is beyond float16.
    """
    size = BLOCK_LAYOUT[dtype][1]
    row, groups = inputs // BLOCK * size, len(zeros)
    width = len(scales) // groups
    blocks = inputs // BLOCK // groups
    for group in range(groups):
        halves = [bytes(scales[group * width : (group + 1) * width])]
        if dtype is DType.Q4_1:
            values = struct.unpack(f"<{width // 2}e", halves[0])
            minima = [-scale * zero for scale, zero in zip(values, zeros[group], strict=True)]
            halves.append(struct.pack(f"<{width // 2}e", *minima))
        for block in range(group * blocks, (group + 1) * blocks):
            for i, half in enumerate(halves):
                out[block * size + 2 * i :: row] = half[::2]
                out[block * size + 2 * i + 1 :: row] = half[1::2]


def put_awq(out: bytearray, dtype: DType, qweight: memoryview, inputs: int) -> None:
    """Write the nibbles of AWQ's qweight, int32 [inputs, outputs / 8], into four-bit blocks."""
    size = BLOCK_LAYOUT[dtype][1]
    row, width = inputs // BLOCK * size, len(qweight) // inputs
    for block in range(inputs // BLOCK):
        low, high = _paired(qweight[block * BLOCK * width : (block + 1) * BLOCK * width])
        for i in range(BLOCK // 2):  # the byte that holds inputs i and i + 16
            at, cut = (block + 1) * size - BLOCK // 2 + i, i * width
            for byte in range(4):
                out[at + AWQ_ORDER[2 * byte] * row :: 8 * row] = low[cut + byte : cut + width : 4]
                out[at + AWQ_ORDER[2 * byte + 1] * row :: 8 * row] = high[cut + byte : cut + width : 4]


def put_gptq4(out: bytearray, dtype: DType, qweight: memoryview, inputs: int) -> None:
    """Write the nibbles of GPTQ's qweight, int32 [inputs / 8, outputs], into four-bit blocks."""
    size = BLOCK_LAYOUT[dtype][1]
    row, width = inputs // BLOCK * size, len(qweight) // (inputs // 8)
    for block in range(inputs // BLOCK):
        low, high = _paired(qweight[block * 4 * width : (block + 1) * 4 * width])
        at = (block + 1) * size - BLOCK // 2
        for i in range(2):
            for byte in range(4):
                place, cut = at + 8 * i + 2 * byte, i * width
                out[place::row] = low[cut + byte : cut + width : 4]
                out[place + 1 :: row] = high[cut + byte : cut + width : 4]


def put_gptq8(out: bytearray, qweight: memoryview, inputs: int) -> None:
    """Write the bytes of GPTQ's eight-bit qweight, int32 [inputs / 4, outputs], less 128, into Q8_0 blocks."""
    size = BLOCK_LAYOUT[DType.Q8_0][1]
    row, width = inputs // BLOCK * size, len(qweight) // (inputs // 4)
    flipped = bytes(byte ^ 0x80 for byte in range(256))
    for block in range(inputs // BLOCK):
        values = bytes(qweight[block * 8 * width : (block + 1) * 8 * width]).translate(flipped)
        for i in range(8):
            for byte in range(4):
                out[block * size + 2 + 4 * i + byte :: row] = values[i * width + byte : (i + 1) * width : 4]


def _paired(packed: memoryview) -> tuple[bytes, bytes]:
    """The low nibbles of the first half's bytes under those of the second half's; and the high nibbles likewise."""
    half = len(packed) // 2
    mask = int.from_bytes(b"\x0f" * half, "little")
    first, second = int.from_bytes(packed[:half], "little"), int.from_bytes(packed[half:], "little")
    low = first & mask | (second & mask) << 4
    high = first >> 4 & mask | second & mask << 4
    return low.to_bytes(half, "little"), high.to_bytes(half, "little")
