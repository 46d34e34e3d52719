"""`open_checkpoint`: a path in, everything a backend and a tokenizer need out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights import open_checkpoint
from headrace.weights.names import expected_shapes
from headrace.weights.spec import DType, Tensor
from tests.weights.files import CONFIG, HIDDEN, VOCAB, gguf_name, llama_arrays, write_dir, write_gguf

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def values(tensor: Tensor) -> np.ndarray:
    assert tensor.dtype is DType.F32
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"attention_bias": True}),
        ("mistral", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 16}),
        ("gemma3_text", {"head_dim": 16}),
        ("phi3", {}),
    ],
)
def test_every_architecture_as_transformers_writes_it(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == expected_shapes(checkpoint.spec).keys()
    state = model.state_dict()
    q = checkpoint.tensors["layers.1.q"]
    fused = state.get("model.layers.1.self_attn.qkv_proj.weight")
    expected = state["model.layers.1.self_attn.q_proj.weight"] if fused is None else fused[: q.shape[0]]
    assert torch.equal(torch.from_numpy(values(q).copy()), expected)
    if fused is not None:
        assert torch.equal(torch.from_numpy(values(checkpoint.tensors["layers.1.v"]).copy()), fused[-16:])
        up = state["model.layers.1.mlp.gate_up_proj.weight"][48:]
        assert torch.equal(torch.from_numpy(values(checkpoint.tensors["layers.1.up"]).copy()), up)
    assert (checkpoint.text.eos_token_ids, checkpoint.text.bos_token_id) == (frozenset({2}), 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept_as_stored(tmp_path: Path, dtype: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES)).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    tensor = open_checkpoint(tmp_path).tensors["layers.0.down"]
    assert tensor.dtype is {"bfloat16": DType.BF16, "float16": DType.F16}[dtype]
    stored = model.state_dict()["model.layers.0.mlp.down_proj.weight"].contiguous()
    assert bytes(tensor.data) == stored.view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.", "model.language_model."])
def test_decoder_under_any_prefix(tmp_path: Path, prefix: str) -> None:
    arrays = {n.replace("model.", prefix, 1): a for n, a in llama_arrays().items()}
    checkpoint = open_checkpoint(write_dir(tmp_path, arrays=arrays))
    np.testing.assert_array_equal(values(checkpoint.tensors["norm"]), llama_arrays()["model.norm.weight"])


def test_the_same_model_as_gguf(tmp_path: Path) -> None:
    ours = open_checkpoint(write_gguf(tmp_path / "tiny.gguf"))
    theirs = open_checkpoint(write_dir(tmp_path / "dir"))
    assert ours.name == "tiny"
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        np.testing.assert_array_equal(values(tensor), values(theirs.tensors[name]))


def test_directory_with_one_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    assert open_checkpoint(tmp_path).spec.num_layers == 2
    assert open_checkpoint(tmp_path, name="given").name == "given"


def changed(name: str, array: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = {**llama_arrays(), name: array}
    return {n: a for n, a in arrays.items() if a is not None}


O_PROJ = "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        (O_PROJ, None, r"missing for llama: layers\.1\.o"),
        (O_PROJ, np.ones((HIDDEN, 8), np.float32), r"o_proj\.weight: has shape \[64, 8\]; .* implies \[64, 64\]"),
        (O_PROJ, np.ones(HIDDEN, np.float32), r"has shape \[64\]"),
        ("model.layers.2.mlp.up_proj.weight", np.ones(1, np.float32), r"unexpected for llama: model\.layers\.2"),
        ("model.layers.01.mlp.up_proj.weight", np.ones(1, np.float32), "unexpected"),
        ("model.layers.0.self_attn.q_proj.bias", np.ones(HIDDEN, np.float32), r"unexpected for llama: .*q_proj\.bias"),
        ("vision_tower.patch.weight", np.ones(1, np.float32), "unexpected for llama: vision_tower"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, name: str, array: np.ndarray | None, complaint: str) -> None:
    with pytest.raises(ModelFileError, match=complaint):
        open_checkpoint(write_dir(tmp_path, arrays=changed(name, array)))
    if name == O_PROJ:
        path = write_gguf(tmp_path / "m.gguf", tensors={gguf_name(name): array})  # type: ignore[dict-item]  # None removes
        with pytest.raises(ModelFileError, match=complaint.replace("o_proj", "attn_output")):
            open_checkpoint(path)


def test_weights_of_a_type_that_is_not_served(tmp_path: Path) -> None:
    folder = write_dir(tmp_path, arrays=changed("model.norm.weight", np.ones(HIDDEN, np.float64)))
    with pytest.raises(UnsupportedModel, match=r"'model\.norm\.weight' is stored as F64; served: F32, F16, BF16"):
        open_checkpoint(folder)


def test_tied_head_stored_twice_is_not_an_error(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_dir(tmp_path, {**CONFIG, "tie_word_embeddings": True}))
    assert "lm_head" not in checkpoint.tensors


@pytest.mark.parametrize("name", ["nowhere", "nowhere.gguf", "nul\0", "x" * 5000])
def test_paths_that_are_no_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError):
        open_checkpoint(tmp_path / name)


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    for path in (tmp_path / "m.gguf", Path("/dev/zero")):
        with pytest.raises(ModelFileError, match="not a regular file"):
            open_checkpoint(path)


def test_split_gguf_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="one of 3 parts"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", {"split.count": 3}))


def test_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json': cannot be read: No such file"):
        open_checkpoint(tmp_path)


# ------------------------------------------------------------------------------------------------------ text part


def test_text_of_a_directory(tmp_path: Path) -> None:
    write_dir(tmp_path)
    templates = [{"name": "default", "template": "old"}, {"name": "tool_use", "template": "tools"}]
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates, **special}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<unk>", "bos_token": "other"}))
    sampling = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], **sampling}))
    (tmp_path / "chat_template.jinja").write_text("new")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/rag.jinja").write_text("rag")
    text = open_checkpoint(tmp_path).text
    assert text.tokenizer_json == str(tmp_path / "tokenizer.json")
    assert text.gguf is None
    assert text.chat_templates == {"default": "new", "tool_use": "tools", "rag": "rag"}
    assert text.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert text.eos_token_ids == {2, 3, 5, 6}
    assert text.sampling_defaults == {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}


def test_greedy_models_have_no_sampling_defaults(tmp_path: Path) -> None:
    write_dir(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.1}))
    assert open_checkpoint(tmp_path).text.sampling_defaults == {}


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("tokenizer_config.json", {"chat_template": 7}, "chat_template: must be a string"),
        ("tokenizer_config.json", {"chat_template": [{"name": "x"}]}, "template is missing"),
        ("tokenizer_config.json", {"chat_template": "x" * (2 << 20)}, "longer than 1048576"),
        ("generation_config.json", {"eos_token_id": ["x"]}, "eos_token_id must be a token id"),
        ("generation_config.json", {"eos_token_id": -1}, "eos_token_id must be a token id"),
        ("generation_config.json", {"temperature": "hot"}, "temperature must be a number"),
        ("generation_config.json", [], "expected a JSON object"),
    ],
)
def test_malformed_text_files(tmp_path: Path, file: str, content: Any, complaint: str) -> None:
    write_dir(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=complaint):
        open_checkpoint(tmp_path)


def test_missing_tokenizer(tmp_path: Path) -> None:
    (write_dir(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: missing"):
        open_checkpoint(tmp_path)


def test_text_of_a_gguf_file(tmp_path: Path) -> None:
    extra = {
        "tokenizer.chat_template": "main",
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.ggml.eot_token_id": 4,
        "tokenizer.ggml.eom_token_id": 6,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.padding_token_id": 0,
    }
    text = open_checkpoint(write_gguf(tmp_path / "m.gguf", extra)).text
    assert text.tokenizer_json is None
    assert text.gguf is not None
    assert text.gguf["tokenizer.ggml.tokens"][1] == "t1"
    assert not any(key.startswith("general.") for key in text.gguf)
    assert text.chat_templates == {"default": "main", "tool_use": "tools"}
    assert text.special_tokens == {"bos_token": "t1", "eos_token": "t2", "pad_token": "t0"}
    assert text.eos_token_ids == {2, 4, 6}
    assert (text.add_bos, text.bos_token_id) == (True, 1)


def test_end_of_turn_token_is_found_by_its_text(tmp_path: Path) -> None:
    tokens = [f"t{i}" for i in range(VOCAB)]
    tokens[9], tokens[10] = "<end_of_turn>", "<|im_end|>"
    types = [1] * VOCAB
    types[9] = 3  # control; the other looks the same and is plain text
    extra = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    assert open_checkpoint(write_gguf(tmp_path / "m.gguf", extra)).text.eos_token_ids == {2, 9}
    named = {**extra, "tokenizer.ggml.eot_token_id": 11}
    assert open_checkpoint(write_gguf(tmp_path / "m.gguf", named)).text.eos_token_ids == {2, 11}


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ({"tokenizer.ggml.tokens": None}, r"tokenizer\.ggml\.tokens must be an array of strings"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "must be an array of strings"),
        ({"tokenizer.ggml.eos_token_id": VOCAB}, r"eos_token_id must be between 0 and 47"),
        ({"tokenizer.ggml.tokens": [str(i) for i in range(VOCAB + 1)]}, "49 tokens, but embeddings for 48 only"),
        ({"tokenizer.chat_template": "x" * (2 << 20)}, "longer than"),
        ({"tokenizer.chat_template": 5}, "must be a string"),
    ],
)
def test_malformed_gguf_text(tmp_path: Path, extra: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelFileError, match=complaint):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", extra))


# --------------------------------------------------------------------------------------------------- the real model


def test_the_default_model(smollm2_path: Path) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    checkpoint = open_checkpoint(smollm2_path)
    sys.setprofile(None)
    assert calls < 600_000, "427,000 in 2026-11: it is part of every start, and seconds would be the machine's"
    assert checkpoint.name == "smollm2-135m-instruct"
    assert checkpoint.spec.parameters == 134_479_872
    assert checkpoint.spec.num_layers == 30
    assert checkpoint.tensors["embedding"].dtype is DType.Q8_0
    assert checkpoint.text.special_tokens["eos_token"] == "<|im_end|>"
    assert "<|im_start|>" in checkpoint.text.chat_templates["default"]


@pytest.mark.parametrize("bos", [True, -1, 1 << 40, "x", [1], None])
def test_what_is_no_token_id_names_no_bos(tmp_path: Path, bos: object) -> None:
    folder = write_dir(tmp_path / "model", {**CONFIG, "bos_token_id": bos})
    assert open_checkpoint(folder).text.bos_token_id is None
