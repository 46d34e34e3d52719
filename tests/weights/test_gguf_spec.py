"""GGUF metadata → specification: the converter's conventions, by architecture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights.gguf import GgufFile
from headrace.weights.gguf_spec import spec_from_gguf
from headrace.weights.spec import Activation, DType, ModelSpec, Tensor


def f32(*values: float) -> Tensor:
    return Tensor(DType.F32, (len(values),), memoryview(np.array(values, np.float32).tobytes()))


def spec(arch: str, tensors: dict[str, Tensor] | None = None, served: int | None = None, **changes: Any) -> ModelSpec:
    own = {
        "block_count": 12,
        "context_length": 4096,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 50_000.0,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    metadata = {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in own.items() if v is not None}}
    embedding = Tensor(DType.F32, (99, 64), memoryview(b""))
    return spec_from_gguf(GgufFile(metadata, {"token_embd.weight": embedding, **(tensors or {})}), "m.gguf", served)


def plain(base: float = 50_000.0, dim: int = 16) -> list[float]:
    return [base ** (-2 * j / dim) for j in range(dim // 2)]


def test_llama() -> None:
    found = spec("llama")
    assert (found.vocab_size, found.head_dim, found.num_kv_heads, found.max_positions) == (99, 16, 2, 4096)
    assert found.ropes[0].interleaved  # the converter permutes q and k
    assert found.ropes[0].inv_freq == pytest.approx(plain())
    assert (found.tied_embeddings, found.qkv_bias, found.o_bias, found.norm_offset) == (True, False, False, 0.0)
    assert found.attention_scale == 0.25
    assert found.layer_window == (None,) * 12


def test_tensors_tell_of_heads_and_biases() -> None:
    names = ("output.weight", "blk.0.attn_q.bias", "blk.0.attn_output.bias")
    found = spec("qwen2", {name: f32(1.0) for name in names})
    assert (found.tied_embeddings, found.qkv_bias, found.o_bias) == (False, True, True)
    assert not found.ropes[0].interleaved


def test_llama3_divisors() -> None:
    divisors = [1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0]
    found = spec("llama", {"rope_freqs.weight": f32(*divisors)})
    assert found.ropes[0].inv_freq == pytest.approx([f / d for f, d in zip(plain(), divisors, strict=True)])
    assert found.ropes[0].interleaved


@pytest.mark.parametrize("divisors", [[1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + [math.nan], [1.0] * 7 + [-2.0]])
def test_bad_divisors(divisors: list[float]) -> None:
    with pytest.raises(ModelFileError, match=r"rope_freqs\.weight"):
        spec("llama", {"rope_freqs.weight": f32(*divisors)})


@pytest.mark.parametrize(("served", "divisor"), [(None, 4.0), (1024, 2.0), (1025, 4.0)])
def test_longrope(served: int | None, divisor: float) -> None:
    sets = {"rope_factors_long.weight": f32(*[4.0] * 8), "rope_factors_short.weight": f32(*[2.0] * 8)}
    found = spec("phi3", sets, served, rope__scaling__original_context_length=1024)
    assert found.ropes[0].inv_freq == pytest.approx([f / divisor for f in plain()])
    assert found.ropes[0].magnitude == pytest.approx(math.sqrt(1 + math.log(4) / math.log(1024)))
    given = spec("phi3", sets, rope__scaling__original_context_length=1024, rope__scaling__attn_factor=1.25)
    assert given.ropes[0].magnitude == 1.25


def test_longrope_without_its_factors() -> None:
    with pytest.raises(ModelFileError, match=r"rope_factors_short\.weight is missing"):
        spec("phi3", rope__scaling__type="longrope")


def test_linear_and_yarn() -> None:
    assert spec("llama", rope__scaling__factor=4.0).ropes[0].inv_freq == pytest.approx([f / 4 for f in plain()])
    yarn = spec(
        "qwen3", rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=1024
    )
    assert yarn.ropes[0].magnitude == pytest.approx(0.1 * math.log(4) + 1)
    assert yarn.ropes[0].inv_freq[0] == 1.0
    assert yarn.ropes[0].inv_freq[-1] == pytest.approx(plain()[-1] / 4)
    assert yarn.max_positions == 4096
    with pytest.raises(UnsupportedModel, match="'dynamic' is not served"):
        spec("llama", rope__scaling__type="dynamic")


def test_partial_rotation() -> None:
    assert spec("phi3", rope__dimension_count=12).ropes[0].inv_freq == pytest.approx(plain(dim=12))


def test_gemma3() -> None:
    found = spec("gemma3", attention__sliding_window=512, attention__key_length=32, rope__scaling__factor=8.0)
    assert found.layer_window == ((512,) * 5 + (None,)) * 2
    assert found.layer_rope == ((1,) * 5 + (0,)) * 2
    full, local = found.ropes
    assert full.inv_freq == pytest.approx([f / 8 for f in plain(dim=32)])
    assert local.inv_freq == pytest.approx(plain(10_000.0, 32))
    assert (found.post_norms, found.qk_norm, found.norm_offset) == (True, True, 0.0)
    assert (found.activation, found.embedding_scale) == (Activation.GELU_TANH, 8.0)
    assert found.attention_scale == pytest.approx(32**-0.5)
    assert spec("gemma3", block_count=62, attention__key_length=32).attention_scale == pytest.approx(16**-0.5)


def test_windows_as_the_file_says() -> None:
    assert spec("llama", attention__sliding_window=7).layer_window == (7,) * 12
    assert spec("phi3", attention__sliding_window=0).layer_window == (None,) * 12
    period = spec("gemma3", attention__sliding_window=7, attention__sliding_window_pattern=3).layer_window
    assert period == (7, 7, None) * 4
    listed = spec("gemma3", attention__sliding_window=7, attention__sliding_window_pattern=[1, 0] * 6).layer_window
    assert listed == (7, None) * 6


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"expert_count": 8}, UnsupportedModel, "mixtures of experts"),
        ({"attention__value_length": 8}, UnsupportedModel, "value_length differs"),
        ({"block_count": 2**32 - 1}, ModelFileError, "block_count must be between 1 and 4096"),
        ({"block_count": None}, ModelFileError, "block_count is missing"),
        ({"attention__head_count": 0}, ModelFileError, "head_count must be between"),
        ({"attention__head_count": [4, 4]}, ModelFileError, "head_count must be an integer"),
        ({"attention__head_count_kv": 3}, ModelFileError, "must divide"),
        ({"rope__dimension_count": 15}, ModelFileError, "leaves 15 of 15"),
        ({"rope__freq_base": math.inf}, ModelFileError, r"rope\.freq_base must be above 1"),
        ({"attention__layer_norm_rms_epsilon": "x"}, ModelFileError, "must be a number"),
        ({"attention__sliding_window": 7, "attention__sliding_window_pattern": [1, 2]}, ModelFileError, "12 bools"),
    ],
)
def test_refusals_name_the_key(changes: dict[str, Any], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        spec("llama", **changes)


def test_other_architectures() -> None:
    with pytest.raises(UnsupportedModel, match=r"'mamba' is not served; served: llama, qwen2, qwen3, gemma3, phi3"):
        spec("mamba")
