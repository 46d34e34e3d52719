"""The GGUF reader against the `gguf` package's writer and reader, and against files that lie."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights.gguf import read_gguf
from headrace.weights.spec import BLOCK_LAYOUT, DType
from tests.weights.files import write_gguf


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0, dimensions: int | None = None) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def file(
    path: Path,
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    entry_count: int | None = None,
    tensor_count: int | None = None,
) -> Path:
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if entry_count is None else entry_count,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", {"general.pi": 3.5, "general.yes": True, "general.names": ["ä", "", "b\0c"]}, kind=kind
    )
    ours = read_gguf(path)
    theirs = gguf.GGUFReader(path)
    assert ours.tensors.keys() == {t.name for t in theirs.tensors}
    for reference in theirs.tensors:
        found = ours.tensors[reference.name]
        assert found.dtype == reference.tensor_type.name
        assert found.shape == tuple(reversed(reference.shape.tolist()))
        assert bytes(found.data) == reference.data.tobytes()
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            expected = field.contents()
            value = ours.metadata[key]
            assert (list(value) if isinstance(expected, list) else value) == expected, key


def test_metadata_types(tmp_path: Path) -> None:
    numbers = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
    entries = tuple(entry(b"k%d" % k, k, struct.pack("<" + c, 5)) for k, c in numbers.items())
    entries += tuple(entry(b"a%d" % k, 9, struct.pack(f"<IQ3{c}", k, 3, 1, 2, 3)) for k, c in numbers.items())
    entries += (entry(b"no", 7, b"\0"), entry(b"flags", 9, struct.pack("<IQ", 7, 2) + b"\1\0"))
    entries += (entry(b"none", 9, struct.pack("<IQ", 8, 0)),)
    metadata = read_gguf(file(tmp_path / "m.gguf", entries)).metadata
    for k in numbers:
        assert metadata[f"k{k}"] == 5
        assert list(metadata[f"a{k}"]) == [1, 2, 3]
    assert metadata["no"] is False
    assert list(metadata["flags"]) == [1, 0]
    assert metadata["none"] == []


def test_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    tokens = [f"token-{i}" for i in range(100_000)]
    path = write_gguf(tmp_path / "m.gguf", {"general.words": tokens})
    started = time.thread_time()
    metadata = read_gguf(path).metadata
    assert time.thread_time() - started < 0.5  # 30 ms on an idle machine
    assert metadata["general.words"] == tokens


U32 = struct.Struct("<I").pack
ARRAY = struct.Struct("<IQ").pack
LIES: dict[str, tuple[dict[str, Any], str]] = {
    "metadata count 2^63": ({"entry_count": 2**63}, "claims 9223372036854775808 metadata entries"),
    "tensor count 2^63": ({"tensor_count": 2**63}, "claims 9223372036854775808 tensors"),
    "more tensors than bytes": ({"tensor_count": 1000}, "claims 1000 tensors; the file has room for"),
    "key longer than the file": (
        {"entries": (struct.pack("<Q", 2**40) + b"abc" + bytes(9),)},
        "claims 1099511627776 bytes",
    ),
    "string of 2^30": (
        {"entries": (entry(b"k", 8, struct.pack("<Q", 2**30)),)},
        "truncated at k: 1073741824 bytes wanted",
    ),
    "array of 2^30": (
        {"entries": (entry(b"k", 9, ARRAY(8, 2**30)), entry(b"l", 0, b"1") * 40)},
        "k claims 1073741824 items",
    ),
    "array longer than a file's numbers": ({"entries": (entry(b"k", 9, ARRAY(6, 100)),)}, "k claims 100 items"),
    "array string past the end": (
        {"entries": (entry(b"k", 9, ARRAY(8, 2) + string(b"a") + struct.pack("<Q", 2**62)), entry(b"l", 0, b"1") * 9)},
        "a string reaches past the end",
    ),
    "array of arrays": ({"entries": (entry(b"k", 9, ARRAY(9, 1) + ARRAY(0, 1) + b"1"),)}, "nested metadata type 9"),
    "unknown metadata type": ({"entries": (entry(b"k", 13, bytes(8)),)}, "unknown metadata type 13"),
    "unknown array type": ({"entries": (entry(b"k", 9, ARRAY(99, 1) + bytes(8)),)}, "metadata type 99"),
    "bool of 2": ({"entries": (entry(b"k", 7, b"\2"),)}, "bool of value 2"),
    "key twice": ({"entries": (entry(b"k", 0, b"1"),) * 2}, "'k' appears twice"),
    "key not UTF-8": ({"entries": (entry(b"\xff", 0, b"1"),)}, "not UTF-8"),
    "value not UTF-8": ({"entries": (entry(b"k", 8, string(b"\xc3")),)}, "k is not UTF-8"),
    "item not UTF-8": ({"entries": (entry(b"k", 9, ARRAY(8, 2) + string(b"a") + string(b"\xc3")),)}, "k is not UTF-8"),
    **{
        f"alignment {a}": ({"entries": (entry(b"general.alignment", 4, U32(a)),)}, "power of two up to 65536")
        for a in (0, 3, 2**31, 2**32 - 1)
    },
    "alignment a string": ({"entries": (entry(b"general.alignment", 8, string(b"32")),)}, "power of two"),
    "dimensions 2^32-1": ({"tensors": (tensor(b"t", (1,), dimensions=2**32 - 1),)}, "claims 4294967295 dimensions"),
    "no dimensions": ({"tensors": (tensor(b"t", (), dimensions=0), bytes(24))}, "claims 0 dimensions"),
    "dimension of zero": ({"tensors": (tensor(b"t", (0, 4)),)}, "dimension of 0"),
    "dimension overflow": ({"tensors": (tensor(b"t", (2**63, 2**63)),)}, "needs bytes 0 to"),
    "product wraps to small": ({"tensors": (tensor(b"t", (2**32, 2**32 + 1)),), "data": bytes(64)}, "needs bytes"),
    "row not in blocks": ({"tensors": (tensor(b"t", (33,), kind=8),), "data": bytes(64)}, "rows of 33 elements"),
    "offset past the end": ({"tensors": (tensor(b"t", (8,), offset=2**40),), "data": bytes(32)}, "truncated or lies"),
    "offset near 2^64": ({"tensors": (tensor(b"t", (8,), offset=2**64 - 32),), "data": bytes(32)}, "truncated or lies"),
    "offset not aligned": (
        {"tensors": (tensor(b"t", (4,), offset=4),), "data": bytes(64)},
        "multiple of the alignment",
    ),
    "truncated data": (
        {"tensors": (tensor(b"t", (9,)),), "data": bytes(35)},
        "needs bytes 0 to 36 of the data, which has 35",
    ),
    "no data": ({"tensors": (tensor(b"t", (9,)),)}, "which has 0"),
    "overlap": ({"tensors": (tensor(b"t", (16,)), tensor(b"u", (8,), offset=32)), "data": bytes(64)}, "'u' overlaps"),
    "name twice": (
        {"tensors": (tensor(b"t", (8,)), tensor(b"t", (8,), offset=32)), "data": bytes(64)},
        "appears twice",
    ),
    "unknown tensor type": ({"tensors": (tensor(b"t", (8,), kind=4),), "data": bytes(64)}, "unknown type 4"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_by_name(tmp_path: Path, lie: str) -> None:
    parts, complaint = LIES[lie]
    if "entries" in parts and lie.startswith("array"):
        parts = {**parts, "entry_count": 1}  # what follows is padding, so that the count alone is the lie
    path = file(tmp_path / "m.gguf", **parts)
    started = time.thread_time()
    with pytest.raises(ModelFileError, match=complaint) as raised:
        read_gguf(path)
    assert time.thread_time() - started < 1
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(("kind", "name"), [(10, "Q2_K"), (23, "IQ4_XS"), (39, "MXFP4"), (24, "I8")])
def test_other_quantisations_are_named(tmp_path: Path, kind: int, name: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"stored as {name}; served types: BF16, F16"):
        read_gguf(file(tmp_path / "m.gguf", (), (tensor(b"t", (256,), kind=kind),), bytes(256)))


@pytest.mark.parametrize(("version", "complaint"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_other_versions_are_named(tmp_path: Path, version: int, complaint: str) -> None:
    with pytest.raises(UnsupportedModel, match=complaint):
        read_gguf(file(tmp_path / "m.gguf", version=version))


@pytest.mark.parametrize("content", [b"", b"G", b"GGUF", b"GGUF\3\0\0\0", b"PK\3\4" + bytes(99), b"\x80\4" + bytes(99)])
def test_what_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"empty|not a GGUF|truncated|pickle"):
        read_gguf(path)


def test_every_type_code_is_gguf_s_own() -> None:
    from headrace.weights.gguf import _NOT_SERVED, _TENSOR_TYPES

    for code, name in {**_TENSOR_TYPES, **_NOT_SERVED}.items():
        assert gguf.GGMLQuantizationType(code).name == name
    assert set(_TENSOR_TYPES.values()) == set(DType)
    for dtype, layout in BLOCK_LAYOUT.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype.value]] == layout


def test_rows_are_views(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", kind="Q8_0")
    whole = read_gguf(path).tensors["blk.0.ffn_up.weight"]
    part = whole.rows(8, 24)
    assert part.shape == (16, whole.shape[1])
    assert np.frombuffer(part.data, np.uint8).base is not None
    assert bytes(part.data) == bytes(whole.data)[8 * 68 : 24 * 68]
