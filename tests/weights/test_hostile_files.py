"""Cut and mutated model files: an error of the tree or a sound checkpoint, in bounded time and memory; nothing else."""

from __future__ import annotations

import json
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.errors import ModelError
from headrace.weights import Checkpoint, open_checkpoint
from headrace.weights.names import expected_shapes
from headrace.weights.spec import BLOCK_LAYOUT
from tests.weights.files import METADATA, write_dir, write_gguf


def check(checkpoint: Checkpoint) -> None:
    """What a backend relies on: every tensor is there, of its shape, with exactly its bytes."""
    expected = expected_shapes(checkpoint.spec)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in checkpoint.tensors.items():
        assert tensor.shape == expected[name]
        elements, size = BLOCK_LAYOUT[tensor.dtype]
        count = 1
        for dimension in tensor.shape:
            count *= dimension
        assert len(tensor.data) == count // elements * size
    assert len(checkpoint.spec.layer_rope) == len(checkpoint.spec.layer_window) == checkpoint.spec.num_layers
    assert all(0 <= i < len(checkpoint.spec.ropes) for i in checkpoint.spec.layer_rope)
    for rope in checkpoint.spec.ropes:
        assert 0 < 2 * len(rope.inv_freq) <= checkpoint.spec.head_dim


def survives(path: Path) -> bool:
    """True when the file opens as a sound checkpoint, False when it is refused with an error of the tree."""
    started = time.thread_time()
    complaint = None
    try:
        check(open_checkpoint(path))
    except ModelError as error:
        complaint = str(error)
    assert time.thread_time() - started < 2
    assert len(complaint or "") < 2000
    return complaint is None


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """A lie about a size must not become an allocation: 1 GiB above what the process has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def gguf_file(folder: Path) -> tuple[Path, int]:
    """A sound GGUF file, and how many of its first bytes are header."""
    path = write_gguf(folder / "model.gguf", {"tokenizer.ggml.merges": ["a b", "c d"]}, kind="Q8_0")
    data = path.read_bytes()
    return path, data.rindex(b"blk.1.") + 64


def safetensors_file(folder: Path) -> tuple[Path, int]:
    """The same for a directory: the mutated file is its model.safetensors."""
    path = write_dir(folder / "model") / "model.safetensors"
    return path, 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]


Make = Callable[[Path], tuple[Path, int]]
both = pytest.mark.parametrize("make", [gguf_file, safetensors_file])


def target(path: Path) -> Path:
    return path if path.suffix == ".gguf" else path.parent


@both
@pytest.mark.usefixtures("bounded_memory")
def test_truncated_at_every_header_byte(tmp_path: Path, make: Make) -> None:
    path, header = make(tmp_path)
    assert survives(target(path))
    data = path.read_bytes()
    for length in [*range(header), len(data) - 33, len(data) - 1]:
        path.write_bytes(data[:length])
        assert not survives(target(path)), length


@both
@pytest.mark.usefixtures("bounded_memory")
def test_flipped_header_bytes(tmp_path: Path, make: Make) -> None:
    path, header = make(tmp_path)
    data = path.read_bytes()
    dice = random.Random(20)
    refused = 0
    for _ in range(2500):
        mutated = bytearray(data)
        for _ in range(dice.choice((1, 1, 1, 2, 5))):
            mutated[dice.randrange(header)] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        path.write_bytes(mutated)
        refused += not survives(target(path))
    assert refused > 600  # the mutations do hit what is checked


@pytest.mark.usefixtures("bounded_memory")
def test_numbers_of_a_gguf_header_replaced(tmp_path: Path) -> None:
    path, header = gguf_file(tmp_path)
    data = path.read_bytes()
    dice = random.Random(21)
    extremes = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
    for _ in range(2000):
        at = dice.randrange(4, header - 8)
        width = dice.choice((4, 8))
        value = dice.choice(extremes) % (1 << (8 * width))
        path.write_bytes(data[:at] + value.to_bytes(width, "little") + data[at + width :])
        survives(path)


@pytest.mark.usefixtures("bounded_memory")
def test_values_of_gguf_metadata_replaced(tmp_path: Path) -> None:
    keys = [*METADATA, "general.alignment", "split.count", "tokenizer.chat_template", "tokenizer.ggml.add_bos_token"]
    keys += [f"llama.{k}" for k in ("expert_count", "attention.scale", "attention.key_length", "rope.dimension_count")]
    keys += [f"llama.attention.sliding_window{k}" for k in ("", "_pattern")] + ["llama.final_logit_softcapping"]
    keys += [f"llama.rope.scaling.{k}" for k in ("type", "factor", "original_context_length", "yarn_beta_fast")]
    values = [
        0,
        1,
        7,
        2**32 - 1,
        0.5,
        float("nan"),
        float("inf"),
        -1.0,
        True,
        "x",
        "yarn",
        [1],
        [0.5] * 3,
        ["a"],
        [True, False],
    ]
    for key in keys:
        for value in values:
            extra = {"llama.attention.sliding_window": 8, key: value}
            if key != "general.alignment" or value in (1, "x"):
                survives(write_gguf(tmp_path / "m.gguf", extra))


@pytest.mark.usefixtures("bounded_memory")
def test_values_of_config_json_replaced(tmp_path: Path) -> None:
    folder = write_dir(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}
    values = [0, -1, 1, 2**31, 2**63, 10**40, 0.5, -0.0, 1e308, True, "x", "", [], [1], {}, {"a": 1}, None]
    for section in (config, config["rope_scaling"]):
        for key in list(section):
            kept = section[key]
            for value in values:
                section[key] = value
                (folder / "config.json").write_text(json.dumps(config))
                survives(folder)
            section[key] = kept
    (folder / "config.json").write_text(json.dumps(config))
    assert survives(folder)
