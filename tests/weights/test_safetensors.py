"""The safetensors reader: what the format's own package writes is read back; every lie is refused by name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights.safetensors import read_safetensors, read_safetensors_dir
from headrace.weights.spec import DType
from tests.weights.files import write_safetensors

SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=st.lists(SHAPES, min_size=1, max_size=6), half=st.booleans())
def test_round_trip(tmp_path: Path, shapes: list[tuple[int, ...]], half: bool) -> None:
    rng = np.random.default_rng(1)
    kind = np.float16 if half else np.float32
    arrays = {f"t{i}": rng.standard_normal(shape).astype(kind) for i, shape in enumerate(shapes)}
    save_file(arrays, str(tmp_path / "m.safetensors"))
    tensors = read_safetensors(tmp_path / "m.safetensors").tensors
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].dtype is (DType.F16 if half else DType.F32)
        assert tensors[name].shape == array.shape
        assert bytes(tensors[name].data) == array.tobytes()
        assert tensors[name].data.readonly


def test_integers_are_set_aside(tmp_path: Path) -> None:
    save_file({"ids": np.arange(3), "w": np.ones(2, np.float32)}, str(tmp_path / "m.safetensors"))
    file = read_safetensors(tmp_path / "m.safetensors")
    assert file.other == {"ids": "I64"}
    assert list(file.tensors) == ["w"]


def entry(begin: int, end: int, shape: Any = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


LIES: dict[str, tuple[Any, bytes, str]] = {
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "'b' overlaps"),
    "same bytes twice": ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), "overlaps"),
    "gap": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "gap of 4 bytes"),
    "tail": ({"a": entry(0, 4)}, bytes(9), "5 bytes after the last tensor"),
    "begin after end": ({"a": entry(8, 4, [1])}, bytes(8), "data_offsets 8 to 4"),
    "past the end": ({"a": entry(0, 16)}, bytes(8), "not within 8 bytes of data"),
    "negative": ({"a": entry(-4, 4)}, bytes(8), "data_offsets"),
    "shape disagrees": ({"a": entry(0, 8, [3])}, bytes(8), "do not hold its shape"),
    "shape overflow": ({"a": entry(0, 8, [2**62, 2**62])}, bytes(8), "do not hold its shape"),
    "dimension of zero": ({"a": entry(0, 0, [0, 4])}, b"", "positive integers"),
    "negative dimension": ({"a": entry(0, 8, [-1, -2])}, bytes(8), "positive integers"),
    "float dimension": ({"a": entry(0, 8, [2.0])}, bytes(8), "positive integers"),
    "bool dimension": ({"a": entry(0, 4, [True])}, bytes(4), "positive integers"),
    "many dimensions": ({"a": entry(0, 4, [1] * 9)}, bytes(4), "positive integers"),
    "float offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, bytes(4), "two integers"),
    "unknown dtype": ({"a": entry(0, 4, dtype="F33")}, bytes(4), "unknown dtype 'F33'"),
    "missing field": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "exactly dtype"),
    "extra field": ({"a": {**entry(0, 4), "code": "x"}}, bytes(4), "exactly dtype"),
    "not an object": ({"a": 7}, b"", "exactly dtype"),
    "a list": (b"[1]", b"", "start with"),
    "not JSON": (b"{nonsense", b"", "not valid JSON"),
    "duplicate name": (b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), bytes(4), "duplicate key 'a'"),
    "deep": (b'{"a":' + b"[" * 200_000, b"", "nested too deeply"),
    "NaN": (b'{"a": NaN}', b"", "NaN"),
    "long number": (b'{"a": %s}' % (b"9" * 5000), b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not valid JSON"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_by_name(tmp_path: Path, lie: str) -> None:
    header, data, complaint = LIES[lie]
    path = write_safetensors(tmp_path / "m.safetensors", header, data)
    with pytest.raises(ModelFileError, match=complaint) as raised:
        read_safetensors(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("length", [2**63, 2**32, 100_000_001, 50])
def test_header_length_beyond_the_file(tmp_path: Path, length: int) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", {}, length=length)
    with pytest.raises(ModelFileError, match=f"claims {length} bytes"):
        read_safetensors(path)


def test_oversized_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((90 << 20).to_bytes(8, "little"))
        file.truncate(100 << 20)
    started = time.thread_time()
    with pytest.raises(ModelFileError, match="the limit is 16777216"):
        read_safetensors(path)
    assert time.thread_time() - started < 0.5


def test_a_hundred_thousand_tensors_take_linear_time(tmp_path: Path) -> None:
    count = 100_000
    path = write_safetensors(tmp_path / "m.safetensors", {f"t{i}": entry(4 * i, 4 * i + 4) for i in range(count)})
    with path.open("ab") as file:
        file.write(bytes(4 * count))
    started = time.thread_time()
    assert len(read_safetensors(path).tensors) == count
    assert time.thread_time() - started < 5


def test_renamed_pickle_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"\x80\x04\x95" + bytes(60))
    with pytest.raises(ModelFileError, match="pickle"):
        read_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"\x08", bytes(7)])
def test_tiny_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"empty|truncated"):
        read_safetensors(path)


# ------------------------------------------------------------------------------------------------- directories


def shards(folder: Path) -> Path:
    for i in (1, 2):
        save_file({f"t{i}": np.full(3, i, np.float32)}, str(folder / f"model-0000{i}-of-00002.safetensors"))
    weight_map = {f"t{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_are_joined(tmp_path: Path) -> None:
    assert sorted(read_safetensors_dir(shards(tmp_path)).tensors) == ["t1", "t2"]


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (shards(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"model-00002-of-00002\.safetensors: this shard is missing"):
        read_safetensors_dir(tmp_path)


def test_shard_without_its_tensor(tmp_path: Path) -> None:
    save_file({"other": np.ones(1, np.float32)}, str(shards(tmp_path) / "model-00002-of-00002.safetensors"))
    with pytest.raises(ModelFileError, match="tensor 't2' is not in it"):
        read_safetensors_dir(tmp_path)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    both = {"t1": np.ones(1, np.float32), "t2": np.ones(1, np.float32)}
    save_file(both, str(shards(tmp_path) / "model-00002-of-00002.safetensors"))
    with pytest.raises(ModelFileError, match="'t1' is in another shard too"):
        read_safetensors_dir(tmp_path)


@pytest.mark.parametrize("name", ["../../etc/x.safetensors", "/x.safetensors", "a\\b.safetensors", "x.bin", 7, None])
def test_index_cannot_name_files_elsewhere(tmp_path: Path, name: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(ModelFileError, match="not the name of a safetensors file beside it"):
        read_safetensors_dir(tmp_path)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin: pickled weights can run code"):
        read_safetensors_dir(tmp_path)
