"""A strict reader of safetensors files: the header is checked in full before any tensor is believed.

Format (safetensors README, "Format"): 8 bytes little-endian header length, a JSON header mapping names to
{dtype, shape, data_offsets}, then the data. Offsets count from the end of the header; tensors cover the data
exactly, without overlap or gap. Nothing is copied: tensors are views of the memory-mapped file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights.files import looks_like_pickle, map_file, parse_json_object, read_json
from headrace.weights.spec import DType, Tensor

MAX_HEADER_BYTES = 16 << 20
"""Far above real headers (100 bytes a tensor); the format's own cap of 100 MB is a denial of service."""
MAX_DIMENSIONS = 8

_ELEMENT_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_NOT_IN_NAMES = frozenset("/\\\0")
"""Characters that a shard's name may not have: shards lie beside their index."""
_SERVED = {"F32": DType.F32, "F16": DType.F16, "BF16": DType.BF16}


class Integers(Struct, frozen=True):
    """A view of an I32 tensor: what AWQ and GPTQ pack quantised weights into."""

    shape: tuple[int, ...]
    data: memoryview


class SafetensorsFile(Struct, frozen=True):
    """What a file, or the shards of one model, hold. ``other`` maps tensors of types that weights never have here
    (integers, fp8) to the type's name: harmless until one of them is needed. ``integers`` are those of them that are
    I32."""

    tensors: Mapping[str, Tensor]
    other: Mapping[str, str]
    integers: Mapping[str, Integers]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Map one file and check all of its header.

    Raises:
        ModelFileError: the header is truncated, oversized, not JSON, or its entries overlap, leave gaps, reach past
            the end, disagree with their shapes, or name unknown types.
    """
    view = map_file(path)
    where = str(path)
    if len(view) < 8:
        raise ModelFileError(f"{where}: truncated: a safetensors file starts with an 8-byte header length")
    length = int.from_bytes(view[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(view) - 8):
        if looks_like_pickle(view):
            raise ModelFileError(f"{where}: this is a pickle, which can run code, and not a safetensors file")
        raise ModelFileError(
            f"{where}: the header claims {length} bytes; the file has {len(view) - 8} after the length, "
            f"and the limit is {MAX_HEADER_BYTES}"
        )
    header = bytes(view[8 : 8 + length])
    if not header.startswith(b"{"):
        raise ModelFileError(f"{where}: the header must start with '{{'")
    entries = parse_json_object(header, f"{where}: header")
    entries.pop("__metadata__", None)
    return _checked(entries, view[8 + length :], where)


def _checked(entries: dict[str, Any], data: memoryview, where: str) -> SafetensorsFile:
    tensors: dict[str, Tensor] = {}
    other: dict[str, str] = {}
    integers: dict[str, Integers] = {}
    extents: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        dtype, shape, begin, end = _entry(entry, len(data), f"{where}: tensor {name[:200]!r}")
        extents.append((begin, end, name))
        if dtype in _SERVED:
            tensors[name] = Tensor(_SERVED[dtype], shape, data[begin:end])
        else:
            other[name] = dtype
        if dtype == "I32":
            integers[name] = Integers(shape, data[begin:end])
    reached = 0
    for begin, end, name in sorted(extents):
        if begin != reached:
            fault = "overlaps another" if begin < reached else f"leaves a gap of {begin - reached} bytes before it"
            raise ModelFileError(f"{where}: tensor {name[:200]!r} {fault}")
        reached = end
    if reached != len(data):
        raise ModelFileError(f"{where}: {len(data) - reached} bytes after the last tensor belong to none")
    return SafetensorsFile(tensors, other, integers)


def _entry(entry: object, size: int, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of a header entry that is consistent in itself."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{where}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ELEMENT_BITS:
        raise ModelFileError(f"{where}: unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(type(d) is int and d > 0 for d in shape):
        raise ModelFileError(f"{where}: shape must be at most {MAX_DIMENSIONS} positive integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int for o in offsets):
        raise ModelFileError(f"{where}: data_offsets must be two integers")
    begin, end = offsets
    if not 0 <= begin <= end <= size:
        raise ModelFileError(
            f"{where}: data_offsets {_clip(begin)} to {_clip(end)} are not within {size} bytes of data"
        )
    bits = math.prod(shape) * _ELEMENT_BITS[dtype]
    if bits != 8 * (end - begin):
        raise ModelFileError(f"{where}: {end - begin} bytes of data do not hold its shape and dtype {dtype}")
    return dtype, tuple(shape), begin, end


def _clip(number: int) -> str:
    return str(number) if abs(number) < 10**20 else "a huge number"


def read_safetensors_dir(folder: Path) -> SafetensorsFile:
    """The weights of a model directory: ``model.safetensors``, the shards of its index, or its only safetensors file.

    Raises:
        ModelFileError: a shard is missing (named), lies about its contents, or there are no weights.
        UnsupportedModel: the directory has pickled weights only.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return read_safetensors(single)
    if index.exists():
        return _read_shards(folder, index)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return read_safetensors(found[0])
    if found:
        raise ModelFileError(f"{folder}: {len(found)} safetensors files and no model.safetensors.index.json")
    pickles = [f for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for f in sorted(folder.glob(pattern))]
    if pickles:
        raise UnsupportedModel(
            f"{pickles[0]}: pickled weights can run code when they are read and are never opened; "
            "convert the model to safetensors"
        )
    raise ModelFileError(f"{folder}: no model.safetensors, no model.safetensors.index.json and no .gguf file")


def _read_shards(folder: Path, index: Path) -> SafetensorsFile:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index}: weight_map must be an object that maps tensors to files")
    tensors: dict[str, Tensor] = {}
    other: dict[str, str] = {}
    integers: dict[str, Integers] = {}
    for shard in sorted({_shard_name(value, index) for value in weight_map.values()}):
        if not (folder / shard).is_file():
            raise ModelFileError(f"{folder / shard}: this shard is missing; {index.name} names it")
        part = read_safetensors(folder / shard)
        for name in (*part.tensors, *part.other):
            if name in tensors or name in other:
                raise ModelFileError(f"{folder / shard}: tensor {name!r} is in another shard too")
        tensors.update(part.tensors)
        other.update(part.other)
        integers.update(part.integers)
        absent = [n for n, s in weight_map.items() if s == shard and n not in part.tensors and n not in part.other]
        if absent:
            raise ModelFileError(f"{folder / shard}: tensor {absent[0]!r} is not in it, though {index.name} says so")
    return SafetensorsFile(tensors, other, integers)


def _shard_name(value: object, index: Path) -> str:
    if not isinstance(value, str) or not value.endswith(".safetensors") or not _NOT_IN_NAMES.isdisjoint(value):
        raise ModelFileError(f"{index}: {str(value)[:100]!r} is not the name of a safetensors file beside it")
    return value
