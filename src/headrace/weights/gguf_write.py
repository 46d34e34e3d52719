"""A GGUF file from metadata and tensors: the counterpart of `headrace.weights.gguf`, for version 3, little-endian."""

from __future__ import annotations

import array
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from headrace.weights.gguf import GGUF_TYPES
from headrace.weights.spec import Tensor

VERSION = 3
ALIGNMENT = 32
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 6, 7, 8, 9, 10
_ARRAY_TYPES = {"b": 1, "B": 0, "h": 3, "H": 2, "i": 5, "I": 4, "f": 6, "q": 11, "Q": 10, "d": 12, "?": _BOOL}


def entry(key: str, value: Any) -> bytes:
    """One metadata entry: bool, int (as uint32), float (as float32), str, list of str, list of bool, `array.array`.

    Raises:
        struct.error: an int that is no uint32.
        TypeError: anything else.
    """
    return _string(key) + _value(value)


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, array.array):
        return struct.pack("<IIQ", _ARRAY, _ARRAY_TYPES[value.typecode], len(value)) + value.tobytes()
    if isinstance(value, list) and all(isinstance(item, bool) for item in value):
        return struct.pack("<IIQ", _ARRAY, _BOOL, len(value)) + bytes(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    raise TypeError(f"GGUF metadata cannot hold a {type(value).__name__}")


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def write_gguf(
    out: BinaryIO,
    entries: Mapping[str, bytes | memoryview],
    tensors: Mapping[str, Tensor],
    *,
    alignment: int = ALIGNMENT,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a whole file. ``entries`` are encoded (see `entry`); ``alignment`` must be what they say, if they do.

    A tensor's ``data`` is read once, when its turn comes: only one has to be in memory. ``progress`` is told
    (bytes done, bytes in all).

    Raises:
        ValueError: a tensor gave other bytes than its shape and type ask for.
    """
    header = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(entries)), *entries.values()]
    offset = 0
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]  # the file lists the fastest dimension first
        header.append(_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        header.append(struct.pack("<IQ", GGUF_TYPES[tensor.dtype], offset))
        offset += tensor.nbytes + _padding(tensor.nbytes, alignment)
    head = b"".join(header)
    out.write(head + bytes(_padding(len(head), alignment)))
    done = 0
    for name, tensor in tensors.items():
        data = tensor.data
        if len(data) != tensor.nbytes:
            raise ValueError(f"{name}: {len(data)} bytes given, {tensor.nbytes} expected")
        out.write(data)
        out.write(bytes(_padding(len(data), alignment)))
        done += len(data) + _padding(len(data), alignment)
        if progress:
            progress(done, offset)


def _padding(size: int, alignment: int) -> int:
    return -size % alignment
