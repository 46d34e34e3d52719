"""config.json → specification, held against transformers' own configurations and RoPE functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights.config_json import ARCHITECTURES, FULL, SLIDING, spec_from_config
from headrace.weights.spec import Activation
from tests.weights.files import CONFIG

SIZES = {
    "vocab_size": 99,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
SHORT, LONG = [1.0 + j / 8 for j in range(8)], [2.0 + j for j in range(8)]
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 256},
    "yarn tuned": {
        "factor": 16.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 24,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    "yarn exact": {"factor": 4.0, "original_max_position_embeddings": 256, "truncate": False, "attention_factor": 1.5},
}


def flat(kind: str) -> dict[str, Any]:
    return {"rope_type": kind.split()[0], "rope_theta": 50_000.0, **SCALINGS[kind]}


def reference_rope(config: Any, seq_len: int | None = None, layer_type: str | None = None) -> tuple[np.ndarray, float]:
    """transformers' frequencies of a configuration."""
    parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    if parameters["rope_type"] == "default":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        return parameters["rope_theta"] ** -(np.arange(0, dim, 2) / dim), 1.0
    function = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    inv_freq, magnitude = function(config, "cpu", seq_len=seq_len, layer_type=layer_type)
    return inv_freq.numpy(), magnitude


def assert_rope(spec: Any, expected: tuple[np.ndarray, float], index: int = 0) -> None:
    np.testing.assert_allclose(spec.ropes[index].inv_freq, expected[0], rtol=2e-6)
    assert spec.ropes[index].magnitude == pytest.approx(expected[1], rel=1e-9)
    assert not spec.ropes[index].interleaved


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_rope_scaling_equals_transformers(model_type: str, kind: str) -> None:
    config = transformers.AutoConfig.for_model(model_type, **SIZES, rope_parameters=flat(kind))
    assert_rope(spec_from_config(config.to_dict()), reference_rope(config))


@pytest.mark.parametrize("kind", [k for k in SCALINGS if k != "default"])
def test_older_spelling_of_rope_scaling(kind: str) -> None:
    scaling = flat(kind)
    theta, name = scaling.pop("rope_theta"), scaling.pop("rope_type")
    config = transformers.LlamaConfig(**SIZES, rope_parameters=flat(kind))
    old = {**SIZES, "model_type": "llama", "rms_norm_eps": 1e-6, "rope_theta": theta}
    assert_rope(spec_from_config({**old, "rope_scaling": {**scaling, "type": name}}), reference_rope(config))
    assert_rope(spec_from_config({**old, "rope_scaling": {**scaling, "rope_type": name}}), reference_rope(config))


@pytest.mark.parametrize(("served", "factors"), [(None, LONG), (256, SHORT), (257, LONG), (100, SHORT)])
@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
def test_longrope_chooses_by_the_served_context(served: int | None, factors: list[float], name: str) -> None:
    old = {**SIZES, "original_max_position_embeddings": 256, "rope_theta": 10_000.0}
    config = transformers.Phi3Config(
        **old, pad_token_id=0, rope_scaling={"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
    )
    raw = {**old, "model_type": "phi3", "rms_norm_eps": 1e-5}
    raw["rope_scaling"] = {"type": name, "short_factor": SHORT, "long_factor": LONG}
    expected = reference_rope(config, seq_len=257 if factors is LONG else 256)
    assert_rope(spec_from_config(raw, max_model_len=served), expected)
    assert_rope(spec_from_config(config.to_dict(), max_model_len=served), expected)


def test_partial_rotation() -> None:
    config = transformers.Phi3Config(**{**SIZES, "hidden_size": 192}, pad_token_id=0, partial_rotary_factor=0.75)
    spec = spec_from_config(config.to_dict())
    assert spec.head_dim == 32
    assert len(spec.ropes[0].inv_freq) == 12
    assert_rope(spec, reference_rope(config))


def gemma3(**changes: Any) -> Any:
    return transformers.Gemma3TextConfig(**{**SIZES, "head_dim": 32, "sliding_window": 24, **changes})


def test_gemma3_has_two_ropes() -> None:
    ropes = {"full_attention": flat("linear"), "sliding_attention": {"rope_type": "default", "rope_theta": 7_000.0}}
    config = gemma3(rope_parameters=ropes, query_pre_attn_scalar=50, final_logit_softcapping=30.0)
    spec = spec_from_config(config.to_dict())
    assert spec.layer_window == (24, 24, 24, 24, 24, None, 24)
    kinds = ["full_attention" if w is None else "sliding_attention" for w in spec.layer_window]
    for kind, index in zip(kinds, spec.layer_rope, strict=True):
        assert_rope(spec, reference_rope(config, layer_type=kind), index)
    assert spec.attention_scale == pytest.approx(50**-0.5)
    assert spec.embedding_scale == pytest.approx(96**0.5)
    assert (spec.norm_offset, spec.post_norms, spec.qk_norm, spec.tied_embeddings) == (1.0, True, True, True)
    assert (spec.activation, spec.logit_softcap, spec.attention_softcap) == (Activation.GELU_TANH, 30.0, None)


def test_gemma3_as_the_hub_has_it() -> None:
    """The multimodal wrapper with most fields left to their defaults, and rope_scaling about full layers alone."""
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    spec = spec_from_config({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.vocab_size) == (8, 4, 256, 262_208)
    assert spec.max_positions == 131_072
    local, full = spec.ropes[spec.layer_rope[0]], spec.ropes[spec.layer_rope[5]]
    assert local.inv_freq[1] == pytest.approx(10_000 ** (-2 / 256))
    assert full.inv_freq[1] == pytest.approx(1_000_000 ** (-2 / 256) / 8)
    assert spec.layer_window.count(None) == 5


WINDOWS: list[tuple[str, dict[str, Any], tuple[int | None, ...]]] = [
    ("llama", {"sliding_window": 8}, (None,) * 7),
    ("mistral", {"sliding_window": 8}, (8,) * 7),
    ("mistral", {"sliding_window": None}, (None,) * 7),
    ("phi3", {"sliding_window": 8}, (8,) * 7),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, (None,) * 7),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 5}, (None,) * 5 + (8, 8)),
    (
        "qwen3",
        {"sliding_window": 8, "use_sliding_window": True, "layer_types": [SLIDING, FULL] * 3 + [FULL]},
        (8, None, 8, None, 8, None, None),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "fields", "expected"), WINDOWS)
def test_windows(model_type: str, fields: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    raw = {**SIZES, "model_type": model_type, "rms_norm_eps": 1e-6, **fields}
    assert spec_from_config(raw).layer_window == expected


@pytest.mark.parametrize(
    ("model_type", "fields", "qkv", "o", "qk_norm"),
    [
        ("llama", {}, False, False, False),
        ("llama", {"attention_bias": True}, True, True, False),
        ("mistral", {"attention_bias": True}, False, False, False),
        ("qwen2", {}, True, False, False),
        ("qwen3", {}, False, False, True),
        ("qwen3", {"attention_bias": True}, True, True, True),
    ],
)
def test_biases_and_norms(model_type: str, fields: dict[str, Any], qkv: bool, o: bool, qk_norm: bool) -> None:
    spec = spec_from_config({**SIZES, "model_type": model_type, "rms_norm_eps": 1e-6, **fields})
    assert (spec.qkv_bias, spec.o_bias, spec.qk_norm) == (qkv, o, qk_norm)


def test_yarn_extends_the_context() -> None:
    """Qwen 2.5 and 3: max_position_embeddings is the context before scaling."""
    raw = {**SIZES, "model_type": "qwen2", "rms_norm_eps": 1e-6}
    scaling = {"type": "yarn", "factor": 4.0}
    assert spec_from_config({**raw, "rope_scaling": scaling}).max_positions == 4096
    scaling |= {"original_max_position_embeddings": 256}
    assert spec_from_config({**raw, "rope_scaling": scaling}).max_positions == 1024


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model_type": "mamba"}, UnsupportedModel, "model_type 'mamba' is not served; served: llama, mistral, qwen2"),
    ({"model_type": None}, UnsupportedModel, "model_type 'None'"),
    ({"model_type": ["llama"]}, UnsupportedModel, "is not served"),
    ({"auto_map": {"AutoModel": "evil.Model"}}, UnsupportedModel, "auto_map asks for code"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, UnsupportedModel, "quantization_config: quant_method"),
    ({"mlp_bias": True}, UnsupportedModel, "mlp_bias"),
    ({"hidden_act": "relu"}, UnsupportedModel, "activation 'relu' is not served; served: silu"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedModel, "'dynamic' is not served"),
    ({"rope_scaling": {"type": "linear"}}, ModelFileError, "factor is missing"),
    ({"rope_scaling": {"type": "linear", "factor": -1}}, ModelFileError, "factor must be above 0"),
    ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, ModelFileError, "factor must be above 0"),
    ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, ModelFileError, "list of 8 numbers"),
    ({"rope_scaling": []}, ModelFileError, "rope_scaling must be an object"),
    ({"partial_rotary_factor": 0.01}, ModelFileError, "partial_rotary_factor leaves 0 of 16"),
    ({"hidden_size": None}, ModelFileError, "hidden_size is missing"),
    ({"hidden_size": "64"}, ModelFileError, "hidden_size must be an integer, not '64'"),
    ({"hidden_size": True}, ModelFileError, "hidden_size must be an integer"),
    ({"num_hidden_layers": 0}, ModelFileError, "num_hidden_layers must be between 1 and 4096"),
    ({"num_hidden_layers": 2**40}, ModelFileError, "num_hidden_layers must be between"),
    ({"vocab_size": -5}, ModelFileError, "vocab_size must be between"),
    ({"num_key_value_heads": 3}, ModelFileError, "must divide num_attention_heads"),
    ({"rms_norm_eps": 0}, ModelFileError, "rms_norm_eps must be above 0"),
    ({"tie_word_embeddings": "yes"}, ModelFileError, "tie_word_embeddings must be true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "complaint"), REFUSED)
def test_refusals_name_the_field(changes: dict[str, Any], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint) as raised:
        spec_from_config({**CONFIG, **changes}, "dir/config.json")
    assert str(raised.value).startswith("dir/config.json: ")


def test_gemma3_refusals() -> None:
    with pytest.raises(UnsupportedModel, match="not causal"):
        spec_from_config({**gemma3().to_dict(), "use_bidirectional_attention": True})
    with pytest.raises(ModelFileError, match="rope_parameters must hold"):
        spec_from_config({**gemma3().to_dict(), "rope_parameters": {"rope_type": "linear", "factor": 2.0}})
    with pytest.raises(ModelFileError, match="text_config is missing"):
        spec_from_config({"model_type": "gemma3"})


def test_every_architecture_has_a_transformers_class() -> None:
    for model_type, arch in ARCHITECTURES.items():
        config = transformers.AutoConfig.for_model(model_type).to_dict()
        spec = spec_from_config(config)
        assert spec.architecture == arch.name
        assert spec.tied_embeddings == config["tie_word_embeddings"]
        assert spec.max_positions == config["max_position_embeddings"]
        assert spec.norm_eps == config["rms_norm_eps"]
