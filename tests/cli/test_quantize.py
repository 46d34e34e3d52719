"""`headrace quantize`: the copy is whole, says what the source says, and never half there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from headrace.backends.cpu.quantize import SCHEMES
from headrace.backends.reference.dequantize import dequantize
from headrace.cli import quantize
from headrace.text.tokenizer import load_tokenizer
from headrace.weights import open_checkpoint
from headrace.weights.gguf import read_gguf
from headrace.weights.gguf_export import differences
from headrace.weights.spec import DType
from tests.cli.commands import command
from tests.parity import tiny
from tests.parity.conftest import load_reference
from tests.parity.steps import compute
from tests.text import vocabularies
from tests.weights.files import write_gguf as write_float_gguf

SIZES = {"hidden_size": 96, "intermediate_size": 160, "vocab_size": 800}
GEMMA = {"num_hidden_layers": 7, "sliding_window": 12, "head_dim": 32, "query_pre_attn_scalar": 24}
KINDS = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
CONFIGS: dict[str, Any] = {
    "llama": lambda: tiny.llama(**SIZES),
    "llama-tied": lambda: tiny.llama(**SIZES, tie_word_embeddings=True),
    "llama-biases": lambda: tiny.llama(**SIZES, attention_bias=True),
    "llama-linear": lambda: tiny.llama(**SIZES, rope_parameters=tiny.rope("linear", factor=4.0)),
    "llama-llama3": lambda: tiny.llama(**SIZES, rope_parameters=tiny.LLAMA3),
    "mistral": lambda: transformers.MistralConfig(**{**tiny.SIZES, **SIZES}, sliding_window=20),
    "qwen2": lambda: transformers.Qwen2Config(**{**tiny.SIZES, **SIZES}, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**{**tiny.SIZES, **SIZES}, head_dim=32, tie_word_embeddings=False),
    "gemma3": lambda: tiny.gemma3(**SIZES, **GEMMA, layer_types=KINDS),
    "phi3": lambda: tiny.phi3(**SIZES),
}


def model_dir(config: Any, folder: Path, seed: int = 0) -> Path:
    tiny.save(tiny.build(config, seed).to(torch.bfloat16), folder)
    vocabularies.byte_level().oracle.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    return folder


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_directory_becomes_a_file_that_computes_the_same(tmp_path: Path, config: Any) -> None:
    """The file's q8_0 weights against the source's, each rounded by us: only the layout can differ."""
    from headrace.backends.cpu.quantize import quantized

    folder = model_dir(config(), tmp_path / "m")
    out = tmp_path / "out.gguf"
    done = command("quantize", str(folder), str(out), "--type", "q8_0")
    assert done.code == 0, done.err
    source, copy = open_checkpoint(folder), open_checkpoint(out)
    assert differences(source.spec, copy.spec) == []
    assert copy.text.chat_templates == source.text.chat_templates
    rounded = {name: quantized(name, tensor, SCHEMES["q8_0"]) for name, tensor in source.tensors.items()}
    tokens = np.random.default_rng(2).integers(0, 600, 30).tolist()
    rows = []
    for checkpoint in (copy, type(source)("m", "m", source.spec, rounded, source.text)):
        backend = load_reference(checkpoint, 64)
        backend.allocate_kv(2)
        rows.append(compute(backend, tokens, [1, 0], [30]))
    np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", quantize.TYPES)
def test_types(tmp_path: Path, kind: str) -> None:
    folder = model_dir(CONFIGS["llama"](), tmp_path / "m")
    out = tmp_path / "out.gguf"
    assert command("quantize", str(folder), str(out), "--type", kind).code == 0
    theirs = {t.name: t for t in gguf.GGUFReader(out).tensors}
    scheme = SCHEMES[kind]
    assert theirs["blk.0.ffn_up.weight"].tensor_type.name == scheme.inner.value
    assert theirs["token_embd.weight"].tensor_type.name == theirs["output.weight"].tensor_type.name == "Q8_0"
    assert theirs["blk.1.attn_norm.weight"].tensor_type.name == "F32"
    original = open_checkpoint(folder).tensors["layers.0.up"]
    stored = gguf.quants.dequantize(theirs["blk.0.ffn_up.weight"].data, theirs["blk.0.ffn_up.weight"].tensor_type)
    errors = np.abs(stored - dequantize(original)) / np.abs(dequantize(original)).max()
    assert errors.max() < (0.005 if scheme.inner is DType.Q8_0 else 0.09)


def test_a_gguf_file_keeps_its_metadata(tmp_path: Path) -> None:
    extra = {"tokenizer.chat_template": "{{ x }}", "something.else": 7, "general.file_type": 1}
    source = write_float_gguf(tmp_path / "float.gguf", extra, kind="F16")
    assert command("quantize", str(source), str(tmp_path / "out.gguf"), "--type", "q4_0").code == 0
    ours, theirs = read_gguf(tmp_path / "out.gguf"), read_gguf(source)
    changed = {"general.file_type": 2, "general.quantization_version": 2}
    assert ours.metadata == {**theirs.metadata, **changed}
    assert [*ours.tensors] == [*theirs.tensors]
    assert {t.dtype for t in ours.tensors.values()} == {DType.F32, DType.Q4_0, DType.Q8_0}


def test_the_tokenizer_survives_twice(model: Path, tmp_path: Path) -> None:
    """SmolLM2's own tokenizer through a directory, a file, and the metadata of that file."""
    real = open_checkpoint(model).text
    folder = model_dir(tiny.llama(**{**SIZES, "vocab_size": 49152, "num_hidden_layers": 1}), tmp_path / "m")
    (folder / "tokenizer.json").write_text(load_tokenizer(real).to_json())
    assert command("quantize", str(folder), str(tmp_path / "out.gguf")).code == 0
    first, second = load_tokenizer(real), load_tokenizer(open_checkpoint(tmp_path / "out.gguf").text)
    text = (Path(__file__).parents[1] / "parity" / "prompts.txt").read_text("utf-8")
    assert first.encode(text) == second.encode(text)
    assert first.special_ids == second.special_ids


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_dir(CONFIGS["llama"](), tmp_path / "m")
    out = tmp_path / "out" / "q.gguf"
    out.parent.mkdir()
    out.write_bytes(b"precious")
    refused = command("quantize", str(folder), str(out))
    assert refused.code == 2
    assert "--force" in refused.err
    monkeypatch.setattr("headrace.cli.quantize._check", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    failed = command("quantize", str(folder), str(out), "--force")
    assert failed.code == 1
    assert "No space left" in failed.err
    assert [*out.parent.iterdir()] == [out]
    assert out.read_bytes() == b"precious"
    monkeypatch.undo()
    assert command("quantize", str(folder), str(out), "--force").code == 0
    assert [*out.parent.iterdir()] == [out]
    assert out.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_refusals(model: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "o.gguf")
    assert "stored as" in command("quantize", str(model), out).err
    assert "must end in .gguf" in command("quantize", str(model), str(tmp_path / "o.bin")).err
    assert "name a model and the file" in command("quantize", str(model)).err
    assert "not one of int8, int4" in command("quantize", str(model), out, "--type", "q2_k").err
    yarn = model_dir(tiny.llama(**SIZES, rope_parameters=tiny.YARN), tmp_path / "yarn")
    assert "cannot be written to GGUF" in command("quantize", str(yarn), out).err
    assert command("quantize", str(yarn), str(tmp_path / "no" / "o.gguf")).code == 1
    assert [*tmp_path.glob("*.gguf")] == []


def test_sampling_defaults_that_are_left_behind_are_named(tmp_path: Path) -> None:
    folder = model_dir(CONFIGS["llama"](), tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6, "top_k": 20}))
    done = command("quantize", str(folder), str(tmp_path / "o.gguf"))
    assert "no place for the model's sampling defaults: temperature 0.6, top_k 20" in done.out
