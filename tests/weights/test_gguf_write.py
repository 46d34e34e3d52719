"""Files that we write, as the `gguf` package and our own strict reader read them."""

from __future__ import annotations

import array
import io
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from headrace.weights.gguf import read_gguf
from headrace.weights.gguf_write import entry, write_gguf
from headrace.weights.spec import BLOCK_LAYOUT, DType, Tensor

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "naïve – 模型",
    "an.empty": "",
    "a.flag": True,
    "a.count": 4_000_000_000,
    "a.fraction": 0.1,
    "words": ["a", "", "Ġthe", "\u2581x"],
    "flags": [True, False, True],
    "kinds": array.array("i", [1, -3, 6]),
    "scores": array.array("f", [0.5, -1e30]),
}


def tensors() -> dict[str, Tensor]:
    rng = np.random.default_rng(1)
    made = {}
    for i, dtype in enumerate(DType):
        elements, size = BLOCK_LAYOUT[dtype]
        shape = (3 + i, 2 * elements) if elements > 1 else (3 + i, 5)
        raw = rng.integers(0, 100, shape[0] * shape[1] // elements * size, dtype=np.uint8)
        made[f"t.{dtype.value}"] = Tensor(dtype, shape, memoryview(raw.tobytes()))
    made["vector"] = Tensor(DType.F32, (7,), memoryview(np.arange(7, dtype=np.float32).tobytes()))
    return made


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_read_back(tmp_path: Path, alignment: int) -> None:
    path, made = tmp_path / "m.gguf", tensors()
    metadata = {**METADATA, "general.alignment": alignment}
    seen: list[tuple[int, int]] = []
    with path.open("wb") as file:
        entries = {key: entry(key, value) for key, value in metadata.items()}
        write_gguf(file, entries, made, alignment=alignment, progress=lambda *now: seen.append(now))
    assert len(seen) == len(made)
    assert seen[-1][0] == seen[-1][1] <= path.stat().st_size

    ours = read_gguf(path)
    expected = {**metadata, "a.fraction": np.float32(0.1), "flags": array.array("B", [1, 0, 1])}
    assert {k: list(v) if isinstance(v, array.array) else v for k, v in ours.metadata.items()} == {
        k: list(v) if isinstance(v, array.array) else v for k, v in expected.items()
    }
    assert {k: (t.dtype, t.shape, bytes(t.data)) for k, t in ours.tensors.items()} == {
        k: (t.dtype, t.shape, bytes(t.data)) for k, t in made.items()
    }

    theirs = gguf.GGUFReader(path)
    assert {t.name: bytes(t.data.tobytes()) for t in theirs.tensors} == {k: bytes(t.data) for k, t in made.items()}
    assert theirs.fields["general.name"].contents() == METADATA["general.name"]
    assert theirs.fields["words"].contents() == METADATA["words"]
    assert theirs.fields["kinds"].contents() == [1, -3, 6]


def test_entries_of_a_file_are_copied_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "source.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("small", 3)
    writer.add_int64("large", -5)
    writer.add_array("list", [1.5, 2.5])
    writer.add_tensor("t", np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = read_gguf(path)
    copy = tmp_path / "copy.gguf"
    with copy.open("wb") as file:
        write_gguf(file, source.entries, source.tensors)
    assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("value", "error"), [(-1, struct.error), (1 << 32, struct.error), (None, TypeError), ([1, "a"], TypeError)]
)
def test_what_an_entry_cannot_be(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        entry("key", value)


def test_a_tensor_of_the_wrong_size() -> None:
    with pytest.raises(ValueError, match="t: 8 bytes given, 12 expected"):
        write_gguf(io.BytesIO(), {}, {"t": Tensor(DType.F32, (3,), memoryview(bytes(8)))})
