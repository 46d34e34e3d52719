"""config.json → `ModelSpec`. An architecture is one entry of a table; whatever fits the specification needs no code.

Field meanings and defaults follow transformers' configuration classes, the authority for this format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights.files import Fields
from headrace.weights.packed import packing_from
from headrace.weights.rope import RopeContext, rope_from, scaled_positions
from headrace.weights.spec import Activation, ModelSpec, Rope

FULL, SLIDING = "full_attention", "sliding_attention"
"""transformers' names of the two layer types."""

MAX_SIZE = 1 << 24
"""Bound of the vocabulary and of every width; MAX_LAYERS and MAX_HEADS bound the counts. All far above real models."""
MAX_LAYERS = 1 << 12
MAX_HEADS = 1 << 12
MAX_HEAD_DIM = 1 << 12
MAX_POSITIONS = 1 << 31

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
}


class Architecture(Struct, frozen=True):
    """How one ``model_type`` differs from the plain Llama decoder.

    ``window`` says where sliding windows come from: "none"; "all" (``sliding_window`` on every layer); "switched"
    (Qwen: ``use_sliding_window``, then ``layer_types`` or ``max_window_layers``); "pattern" (Gemma: ``layer_types``
    or every n-th layer full). ``bias`` is "none", "qkv" or "flag" (``attention_bias`` adds q, k, v and o biases).
    """

    name: str
    window: str = "none"
    bias: str = "none"
    qk_norm: bool = False
    gemma: bool = False
    """Gemma's three habits: norms multiply by 1 + weight, norms after attention and feed-forward too, and the
    embedding is scaled by sqrt(hidden)."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spellings of RoPE scaling kinds."""


_GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", bias="flag"),
    "mistral": Architecture("mistral", window="all"),
    "qwen2": Architecture("qwen2", window="switched", bias="qkv"),
    "qwen3": Architecture("qwen3", window="switched", bias="flag", qk_norm=True, defaults={"head_dim": 128}),
    "gemma3_text": Architecture(
        "gemma3", window="pattern", bias="flag", qk_norm=True, gemma=True, defaults=_GEMMA3_DEFAULTS
    ),
    "phi3": Architecture(
        "phi3",
        window="all",
        defaults={"original_max_position_embeddings": 4096},
        rope_aliases={"su": "longrope", "yarn": "longrope"},
    ),
}
"""``model_type`` → architecture. SmolLM's type is llama; Qwen 2.5's is qwen2; gemma3 is gemma3_text in a wrapper."""


def spec_from_config(
    config: Mapping[str, Any], where: str = "config.json", max_model_len: int | None = None
) -> ModelSpec:
    """The specification that a config.json describes.

    ``max_model_len`` is the context that will be served, where it is known; LongRoPE chooses its factors by it.

    Raises:
        ModelFileError: a field is missing, of a wrong type or out of range; the message names it.
        UnsupportedModel: another architecture, quantisation, or a variant that the specification cannot express.
    """
    config = _text_part(config, where)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{where}: model_type {str(model_type)[:60]!r} is not served; served: {', '.join(ARCHITECTURES)}, gemma3"
        )
    arch = ARCHITECTURES[model_type]
    fields = Fields(where, config, arch.defaults)
    _refuse_variants(fields)
    hidden = fields.integer("hidden_size", MAX_SIZE)
    layers = fields.integer("num_hidden_layers", MAX_LAYERS)
    heads = fields.integer("num_attention_heads", MAX_HEADS)
    kv_heads = fields.integer("num_key_value_heads", MAX_HEADS, default=heads)
    head_dim = fields.integer("head_dim", MAX_HEAD_DIM, default=hidden // heads)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"must divide num_attention_heads ({heads}), not {kv_heads}")
    positions = fields.integer("max_position_embeddings", MAX_POSITIONS)
    windows = _windows(fields, arch, layers)
    kinds = _layer_kinds(fields, arch, windows)
    ropes, layer_rope = _ropes(fields, arch, kinds, head_dim, positions, max_model_len)
    biased = arch.bias == "flag" and fields.flag("attention_bias")
    scalar = fields.number("query_pre_attn_scalar") if arch.gemma else float(head_dim)
    return ModelSpec(
        architecture=arch.name,
        vocab_size=fields.integer("vocab_size", MAX_SIZE),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=fields.integer("intermediate_size", MAX_SIZE),
        max_positions=scaled_positions(_rope_section(fields, arch, FULL), positions),
        norm_eps=fields.number("rms_norm_eps", high=1.0),
        ropes=ropes,
        layer_rope=layer_rope,
        layer_window=windows,
        attention_scale=scalar**-0.5,
        norm_offset=1.0 if arch.gemma else 0.0,
        post_norms=arch.gemma,
        qk_norm=arch.qk_norm,
        qkv_bias=biased or arch.bias == "qkv",
        o_bias=biased,
        activation=_activation(fields, arch),
        embedding_scale=hidden**0.5 if arch.gemma else 1.0,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        attention_softcap=_softcap(fields, arch, "attn_logit_softcapping"),
        logit_softcap=_softcap(fields, arch, "final_logit_softcapping"),
    )


def _text_part(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The decoder's own configuration: Gemma 3's multimodal wrapper keeps it under ``text_config``."""
    _refuse_foreign(config, where)
    if config.get("model_type") != "gemma3":
        return config
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        raise ModelFileError(f"{where}: text_config is missing or not an object")
    _refuse_foreign(inner, where)
    outer = {"tie_word_embeddings": config.get("tie_word_embeddings")}
    return {**outer, **inner, "model_type": "gemma3_text"}


def _refuse_foreign(config: Mapping[str, Any], where: str) -> None:
    if config.get("auto_map"):
        raise UnsupportedModel(
            f"{where}: auto_map asks for code from the model's repository to be run, which headrace never does. If the "
            "model is a plain one of a served architecture, remove auto_map from the file"
        )
    packing_from(config, where)


def _refuse_variants(fields: Fields) -> None:
    for name, fix in (
        ("mlp_bias", "biases in the feed-forward"),
        ("use_bidirectional_attention", "attention that is not causal"),
    ):
        if fields.flag(name):
            raise UnsupportedModel(f"{fields.where}: {name}: {fix} is not served")


def _activation(fields: Fields, arch: Architecture) -> Activation:
    name = fields.string("hidden_activation" if arch.gemma else "hidden_act", default="silu")
    if name not in _ACTIVATIONS:
        served = ", ".join(_ACTIVATIONS)
        raise UnsupportedModel(f"{fields.where}: activation {name[:40]!r} is not served; served: {served}")
    return _ACTIVATIONS[name]


def _softcap(fields: Fields, arch: Architecture, name: str) -> float | None:
    return fields.number(name) if arch.gemma and fields.get(name) is not None else None


def _windows(fields: Fields, arch: Architecture, layers: int) -> tuple[int | None, ...]:
    """Per layer, how many positions it attends to; None for all."""
    if arch.window == "none" or fields.get("sliding_window") is None:
        return (None,) * layers
    if arch.window == "switched" and not fields.flag("use_sliding_window"):
        return (None,) * layers
    window = fields.integer("sliding_window", MAX_POSITIONS)
    if arch.window == "all":
        return (window,) * layers
    types = fields.get("layer_types")
    if types is None:
        if arch.window == "pattern":
            period = fields.integer("sliding_window_pattern", MAX_LAYERS)
            return tuple(window if (i + 1) % period else None for i in range(layers))
        first = fields.integer("max_window_layers", MAX_LAYERS, low=0, default=28)
        return tuple(window if i >= first else None for i in range(layers))
    if not isinstance(types, list) or len(types) != layers or any(t not in (FULL, SLIDING) for t in types):
        raise fields.error("layer_types", f"must name {FULL} or {SLIDING} for each of the {layers} layers")
    return tuple(window if kind == SLIDING else None for kind in types)


def _layer_kinds(fields: Fields, arch: Architecture, windows: tuple[int | None, ...]) -> tuple[str, ...]:
    """Which set of RoPE parameters each layer takes; the same for all unless sliding layers have their own."""
    nested = fields.section("rope_parameters")
    if arch.gemma or (nested is not None and isinstance(nested.get(SLIDING), Mapping)):
        return tuple(FULL if window is None else SLIDING for window in windows)
    return (FULL,) * len(windows)


def _ropes(
    fields: Fields, arch: Architecture, kinds: tuple[str, ...], head_dim: int, positions: int, wanted: int | None
) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    original = fields.get("original_max_position_embeddings")
    if original is not None:
        original = fields.integer("original_max_position_embeddings", MAX_POSITIONS)
    context = RopeContext(head_dim, positions, original, wanted or positions)
    partial = fields.number("partial_rotary_factor", high=1.0, default=1.0)
    theta = fields.number("rope_theta", low=1.0, default=10_000.0)
    bases = {FULL: theta, SLIDING: fields.number("rope_local_base_freq", low=1.0, default=theta)}
    distinct: list[str] = sorted(set(kinds))
    ropes = tuple(
        rope_from(_rope_section(fields, arch, kind), context, base=bases[kind], partial=partial) for kind in distinct
    )
    return ropes, tuple(distinct.index(kind) for kind in kinds)


def _rope_section(fields: Fields, arch: Architecture, kind: str) -> Fields:
    """The parameters of one layer kind: nested by kind or flat, under transformers 5's name or the older one.

    The older ``rope_scaling`` of Gemma 3 is about full-attention layers alone.
    """
    section = fields.section("rope_parameters")
    if section is not None and any(isinstance(section.get(k), Mapping) for k in (FULL, SLIDING)):
        section = section.section(kind)
    elif section is not None and arch.gemma:
        raise fields.error("rope_parameters", f"must hold {FULL} and {SLIDING} objects")
    if section is None and not (arch.gemma and kind == SLIDING):
        section = fields.section("rope_scaling")
    values = section.as_dict() if section is not None else {}
    given = values.get("rope_type") or values.get("type")
    if isinstance(given, str) and given in arch.rope_aliases:
        values["rope_type"] = arch.rope_aliases[given]
    return Fields(section.where if section is not None else fields.where, values)
