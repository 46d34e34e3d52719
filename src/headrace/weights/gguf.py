"""A strict, quick reader of GGUF files: metadata as plain values, tensors as views of the memory-mapped file.

Format (ggml's docs/gguf.md), little-endian: magic, version, tensor count, metadata count; metadata as (key, type,
value); tensor records as (name, dimensions, type, offset); padding to the alignment; data. Every count and length is
held against the bytes that are left before anything is allocated, so time and memory are linear in the file's size.
"""

from __future__ import annotations

import array
import math
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights.files import looks_like_pickle, map_file
from headrace.weights.spec import BLOCK_LAYOUT, DType, Tensor

MAX_ARRAY_ITEMS = 1 << 22
"""Longest metadata array: sixteen times the largest vocabulary in use."""
MAX_ENTRIES = 1 << 17
"""Most metadata entries, and most tensors."""
MAX_NAME_BYTES = 1 << 16
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, str] = dict(zip((0, 1, 2, 3, 4, 5, 6, _BOOL, 10, 11, 12), "BbHhIifBQqd", strict=True))
"""Metadata type → its `struct` and `array` code."""
_STRUCTS = {kind: struct.Struct("<" + code) for kind, code in _SCALARS.items()}

_TENSOR_TYPES: Mapping[int, DType] = {
    0: DType.F32,
    1: DType.F16,
    2: DType.Q4_0,
    3: DType.Q4_1,
    6: DType.Q5_0,
    7: DType.Q5_1,
    8: DType.Q8_0,
    12: DType.Q4_K,
    13: DType.Q5_K,
    14: DType.Q6_K,
    30: DType.BF16,
}
GGUF_TYPES: Mapping[DType, int] = {dtype: code for code, dtype in _TENSOR_TYPES.items()}
"""Storage type → its number in a file."""
_NOT_SERVED = {9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"}
_NOT_SERVED |= {20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64"}
_NOT_SERVED |= {28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}


class GgufFile(Struct, frozen=True):
    """Metadata values are int, float, bool, str, a list of str, or an `array.array` of numbers (bools as 0 and 1).
    ``entries`` are the same as the file's own bytes, key and type included, for whoever writes them again."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    entries: Mapping[str, memoryview] = field(default_factory=dict)


def read_gguf(path: Path) -> GgufFile:
    """Map a GGUF file (version 2 or 3) and check all of its header.

    Raises:
        ModelFileError: truncated, or any count, length, dimension, alignment or offset does not fit the file.
        UnsupportedModel: an old or big-endian version, or a tensor type that is not served.
    """
    view = map_file(path)
    cursor = _Cursor(view, str(path))
    tensor_count, entry_count = _preamble(cursor)
    metadata: dict[str, Any] = {}
    entries: dict[str, memoryview] = {}
    for _ in range(entry_count):
        begin = cursor.position
        key = cursor.string("a metadata key", MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.error(f"metadata key {key[:200]!r} appears twice")
        metadata[key] = cursor.value(key)
        entries[key] = view[begin : cursor.position]
    records = [_record(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.error(f"general.alignment must be a power of two up to {MAX_ALIGNMENT}, not {str(alignment)[:40]}")
    return GgufFile(metadata, _tensors(cursor, records, alignment), entries)


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    if bytes(cursor.view[:4]) != b"GGUF":
        kind = "this is a pickle, which can run code, and" if looks_like_pickle(cursor.view) else "it is"
        raise cursor.error(f"{kind} not a GGUF file: it does not start with GGUF")
    cursor.position = 4
    version = cursor.scalar(4, "the version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = "big-endian" if swapped in (1, 2, 3) else f"of version {version}"
        raise UnsupportedModel(f"{cursor.where}: the file is {kind}; versions 2 and 3, little-endian, are served")
    tensor_count = cursor.scalar(10, "the tensor count")
    entry_count = cursor.scalar(10, "the metadata count")
    for count, what, smallest in ((tensor_count, "tensors", 24), (entry_count, "metadata entries", 13)):
        if count > min(MAX_ENTRIES, cursor.left // smallest):
            raise cursor.error(f"it claims {count} {what}; the file has room for {cursor.left // smallest}, "
                               f"and the limit is {MAX_ENTRIES}")  # fmt: skip
    return tensor_count, entry_count


class _Record(Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    dtype: DType
    offset: int
    size: int


def _record(cursor: _Cursor) -> _Record:
    name = cursor.string("a tensor name", MAX_NAME_BYTES)
    what = f"tensor {name[:200]!r}"
    dimensions = cursor.scalar(4, what)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.error(f"{what} claims {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed")
    # The file lists the fastest dimension first; shapes here list it last.
    shape = tuple(cursor.scalar(10, what) for _ in range(dimensions))[::-1]
    code = cursor.scalar(4, what)
    offset = cursor.scalar(10, what)
    dtype = _TENSOR_TYPES.get(code)
    if dtype is None:
        served = ", ".join(sorted(_TENSOR_TYPES.values()))
        if code in _NOT_SERVED:
            raise UnsupportedModel(f"{cursor.where}: {what} is stored as {_NOT_SERVED[code]}; served types: {served}")
        raise cursor.error(f"{what} has the unknown type {code}; served types: {served}")
    elements, size = BLOCK_LAYOUT[dtype]
    if 0 in shape:
        raise cursor.error(f"{what} has a dimension of 0")
    if shape[-1] % elements:
        raise cursor.error(f"{what} has rows of {shape[-1]} elements, not a multiple of {dtype}'s block of {elements}")
    return _Record(name, shape, dtype, offset, math.prod(shape) // elements * size)


def _tensors(cursor: _Cursor, records: list[_Record], alignment: int) -> dict[str, Tensor]:
    base = -(-cursor.position // alignment) * alignment
    room = len(cursor.view) - base
    data = cursor.view[base:] if room > 0 else cursor.view[:0]
    tensors: dict[str, Tensor] = {}
    for record in records:
        what = f"tensor {record.name[:200]!r}"
        if record.name in tensors:
            raise cursor.error(f"{what} appears twice")
        if record.offset % alignment:
            raise cursor.error(f"{what} starts at {record.offset}, not a multiple of the alignment {alignment}")
        if record.offset + record.size > room:
            raise cursor.error(
                f"{what} needs bytes {record.offset} to {record.offset + record.size} of the data, which has {room}; "
                "the file is truncated or lies"
            )
        view = data[record.offset : record.offset + record.size]
        tensors[record.name] = Tensor(record.dtype, record.shape, view)
    reached = 0
    for record in sorted(records, key=lambda record: record.offset):
        if record.offset < reached:
            raise cursor.error(f"tensor {record.name[:200]!r} overlaps another")
        reached = record.offset + record.size
    return tensors


class _Cursor:
    """A position in the mapped header that never passes the end."""

    def __init__(self, view: memoryview, where: str) -> None:
        self.view = view
        self.where = where
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.view) - self.position

    def error(self, complaint: str) -> ModelFileError:
        return ModelFileError(f"{self.where}: {complaint}")

    def _need(self, size: int, what: str) -> None:
        if size > self.left:
            raise self.error(f"truncated at {what[:200]}: {size} bytes wanted, {self.left} left")

    def scalar(self, kind: int, what: str) -> Any:
        """One number or bool of a metadata type."""
        layout = _STRUCTS[kind]
        self._need(layout.size, what)
        (value,) = layout.unpack_from(self.view, self.position)
        self.position += layout.size
        if kind == _BOOL:
            if value > 1:
                raise self.error(f"{what[:200]} is a bool of value {value}")
            return bool(value)
        return value

    def string(self, what: str, limit: int | None = None) -> str:
        length = self.scalar(10, what)
        if limit is not None and length > limit:
            raise self.error(f"{what} claims {length} bytes; the limit is {limit}")
        self._need(length, what)
        raw = bytes(self.view[self.position : self.position + length])
        self.position += length
        return self._decode(raw, what)

    def value(self, key: str) -> Any:
        """A metadata value of any type."""
        kind = self.scalar(4, key)
        if kind == _STRING:
            return self.string(key)
        if kind in _SCALARS:
            return self.scalar(kind, key)
        if kind != _ARRAY:
            raise self.error(f"{key[:200]} has the unknown metadata type {kind}")
        kind, count = self.scalar(4, key), self.scalar(10, key)
        if kind != _STRING and kind not in _SCALARS:
            raise self.error(f"{key[:200]} is an array of the unknown or nested metadata type {kind}")
        smallest = 8 if kind == _STRING else _STRUCTS[kind].size
        if count > min(MAX_ARRAY_ITEMS, self.left // smallest):
            raise self.error(
                f"{key[:200]} claims {count} items; the file has room for {self.left // smallest}, "
                f"and the limit is {MAX_ARRAY_ITEMS}"
            )
        return self._strings(count, key) if kind == _STRING else self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> array.array[Any]:
        size = count * _STRUCTS[kind].size
        numbers: array.array[Any] = array.array(_SCALARS[kind], bytes(self.view[self.position : self.position + size]))
        if sys.byteorder == "big":
            numbers.byteswap()
        self.position += size
        return numbers

    def _strings(self, count: int, key: str) -> list[str]:
        """Strings of a vocabulary, 0.15 µs each: cut in one loop, decoded all at once."""
        data: Any = self.view.obj  # the map itself: slices of it are bytes at once
        position, end = self.position, len(self.view)
        unpack = _STRUCTS[10].unpack_from
        raw: list[bytes] = []
        append = raw.append
        for _ in range(count):
            start = position + 8
            if start > end:
                raise self.error(f"truncated in {key[:200]}")
            position = start + unpack(data, position)[0]
            if position > end:
                raise self.error(f"truncated in {key[:200]}: a string reaches past the end")
            append(data[start:position])
        self.position = position
        try:
            # NUL occurs in no string of a sane vocabulary; where it does, the count is off and each decodes alone.
            strings = b"\0".join(raw).decode("utf-8").split("\0")
        except UnicodeDecodeError:
            strings = []
        return strings if len(strings) == count else [self._decode(item, key) for item in raw]

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what[:200]} is not UTF-8: {error.reason} at byte {error.start}") from error
