"""GGUF metadata → `ModelSpec`. Keys are ``{architecture}.…``; the authority is llama.cpp and its converter.

What the converter changes, and this reader undoes or declares: llama's q and k rows are permuted so that RoPE pairs
neighbours (``Rope.interleaved``); Gemma's norm weights already have 1 added; Llama 3's and Phi-3's RoPE scaling is a
tensor of divisors.
"""

from __future__ import annotations

import array
import math
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from headrace.errors import UnsupportedModel
from headrace.weights import config_json as limits
from headrace.weights.files import Fields
from headrace.weights.gguf import GgufFile
from headrace.weights.rope import (
    MAX_FACTOR,
    MIN_FACTOR,
    RopeContext,
    divided,
    longrope_magnitude,
    rope_from,
    scaled_positions,
)
from headrace.weights.spec import Activation, DType, ModelSpec, Rope, Tensor


class GgufArchitecture(Struct, frozen=True):
    """How one ``general.architecture`` differs from the plain decoder."""

    interleaved: bool = False
    qk_norm: bool = False
    gemma: bool = False
    window_period: int = 0
    """Every n-th layer attends to everything, the others slide; 0: all layers slide where a window is given."""
    local_base: float | None = None
    """RoPE base of sliding layers, where it differs and the file need not say so."""


GGUF_ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "llama": GgufArchitecture(interleaved=True),  # Llama, SmolLM, Mistral
    "qwen2": GgufArchitecture(),
    "qwen3": GgufArchitecture(qk_norm=True),
    "gemma3": GgufArchitecture(qk_norm=True, gemma=True, window_period=6, local_base=10_000.0),
    "phi3": GgufArchitecture(),
}

_GEMMA3_27B_LAYERS = 62
"""The one Gemma 3 whose attention scale is (hidden / heads)^-0.5, not head_dim^-0.5; GGUF has no key for it."""


def spec_from_gguf(file: GgufFile, where: str, max_model_len: int | None = None) -> ModelSpec:
    """The specification that a GGUF file's metadata and tensor list describe.

    Raises:
        ModelFileError: a key is missing, of a wrong type or out of range; the message names it.
        UnsupportedModel: another architecture, or experts.
    """
    name = Fields(where, file.metadata).string("general.architecture")
    arch = GGUF_ARCHITECTURES.get(name)
    if arch is None:
        served = ", ".join(GGUF_ARCHITECTURES)
        raise UnsupportedModel(f"{where}: general.architecture {name[:60]!r} is not served; served: {served}")
    own = {k[len(name) + 1 :]: v for k, v in file.metadata.items() if k.startswith(name + ".")}
    fields = Fields(f"{where}: {name}", own)
    if fields.integer("expert_count", limits.MAX_SIZE, low=0, default=0):
        raise UnsupportedModel(f"{fields.where}: expert_count: mixtures of experts are not served")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise Fields(where, {}).error("token_embd.weight", "is missing or not a matrix")
    hidden = fields.integer("embedding_length", limits.MAX_SIZE)
    layers = fields.integer("block_count", limits.MAX_LAYERS)
    heads = fields.integer("attention.head_count", limits.MAX_HEADS)
    kv_heads = fields.integer("attention.head_count_kv", limits.MAX_HEADS, default=heads)
    if heads % kv_heads:
        raise fields.error("attention.head_count_kv", f"must divide attention.head_count ({heads}), not {kv_heads}")
    head_dim = fields.integer("attention.key_length", limits.MAX_HEAD_DIM, default=hidden // heads)
    if fields.integer("attention.value_length", limits.MAX_HEAD_DIM, default=head_dim) != head_dim:
        raise UnsupportedModel(f"{fields.where}: attention.value_length differs from attention.key_length")
    positions = fields.integer("context_length", limits.MAX_POSITIONS)
    windows = _windows(fields, arch, layers)
    ropes, layer_rope = _ropes(fields, arch, file.tensors, windows, head_dim, positions, max_model_len)
    return ModelSpec(
        architecture=name,
        vocab_size=embedding.shape[0],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=fields.integer("feed_forward_length", limits.MAX_SIZE),
        max_positions=scaled_positions(_scaling(fields), positions),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", high=1.0),
        ropes=ropes,
        layer_rope=layer_rope,
        layer_window=windows,
        attention_scale=_attention_scale(fields, arch, hidden, heads, head_dim, layers),
        post_norms=arch.gemma,
        qk_norm=arch.qk_norm,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        activation=Activation.GELU_TANH if arch.gemma else Activation.SILU,
        embedding_scale=math.sqrt(hidden) if arch.gemma else 1.0,
        tied_embeddings="output.weight" not in file.tensors,
        attention_softcap=_optional(fields, "attn_logit_softcapping"),
        logit_softcap=_optional(fields, "final_logit_softcapping"),
    )


def _optional(fields: Fields, name: str) -> float | None:
    return fields.number(name) if fields.get(name) else None


def _attention_scale(
    fields: Fields, arch: GgufArchitecture, hidden: int, heads: int, head_dim: int, layers: int
) -> float:
    given = _optional(fields, "attention.scale")
    if given is not None:
        return given
    if arch.gemma and layers == _GEMMA3_27B_LAYERS:
        return 1 / math.sqrt(hidden // heads)
    return 1 / math.sqrt(head_dim)


def _windows(fields: Fields, arch: GgufArchitecture, layers: int) -> tuple[int | None, ...]:
    window = fields.integer("attention.sliding_window", limits.MAX_POSITIONS, low=0, default=0)
    if window == 0:
        return (None,) * layers
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, array.array | list):
        slides = list(pattern)  # bools, one a layer
        if len(slides) != layers or any(s not in (0, 1) for s in slides):
            raise fields.error("attention.sliding_window_pattern", f"must be {layers} bools")
        return tuple(window if s else None for s in slides)
    period = fields.integer("attention.sliding_window_pattern", limits.MAX_LAYERS, low=0, default=arch.window_period)
    return tuple(window if not period or (i + 1) % period else None for i in range(layers))


def _ropes(
    fields: Fields,
    arch: GgufArchitecture,
    tensors: Mapping[str, Tensor],
    windows: tuple[int | None, ...],
    head_dim: int,
    positions: int,
    max_model_len: int | None,
) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    original = fields.integer("rope.scaling.original_context_length", limits.MAX_POSITIONS, default=positions)
    rotated = fields.integer("rope.dimension_count", head_dim, default=head_dim)
    context = RopeContext(rotated, positions, original, max_model_len or positions)
    base = fields.number("rope.freq_base", low=1.0, default=10_000.0)
    rope = rope_from(_scaling(fields), context, base=base)
    rope = replace(_with_factors(rope, tensors, fields, context), interleaved=arch.interleaved)
    if arch.local_base is None or not any(windows):
        return (rope,), (0,) * len(windows)
    local_base = fields.number("rope.freq_base_swa", low=1.0, default=arch.local_base)
    sliding = rope_from(Fields(fields.where, {}), context, base=local_base)
    return (rope, replace(sliding, interleaved=arch.interleaved)), tuple(int(w is not None) for w in windows)


def _scaling_type(fields: Fields) -> str:
    """A factor with no type means linear, as llama.cpp reads it."""
    return fields.string("rope.scaling.type", default="linear" if fields.get("rope.scaling.factor") else "none")


def _scaling(fields: Fields) -> Fields:
    """GGUF's scaling keys under the names that `headrace.weights.rope` knows from config.json."""
    kind = _scaling_type(fields)
    # LongRoPE's divisors are tensors, applied by `_with_factors`.
    values = {"rope_type": "default" if kind in ("none", "longrope") else kind}
    for ours, theirs in (
        ("factor", "factor"),
        ("original_max_position_embeddings", "original_context_length"),
        ("attention_factor", "yarn_attn_factor"),
        ("beta_fast", "yarn_beta_fast"),
        ("beta_slow", "yarn_beta_slow"),
    ):
        values[ours] = fields.get(f"rope.scaling.{theirs}")
    return Fields(f"{fields.where}: rope.scaling", values)


def _with_factors(rope: Rope, tensors: Mapping[str, Tensor], fields: Fields, context: RopeContext) -> Rope:
    """The embedding with the file's tensors of divisors applied: Llama 3's, or one of LongRoPE's two sets."""
    if _scaling_type(fields) == "longrope" or "rope_factors_long.weight" in tensors:
        long = context.wanted > context.original_positions(fields)
        name = f"rope_factors_{'long' if long else 'short'}.weight"
        given = {"attention_factor": fields.get("rope.scaling.attn_factor")}
        rope = replace(rope, magnitude=longrope_magnitude(Fields(fields.where, given), context))
        if name not in tensors:
            raise Fields(fields.where, {}).error(name, "is missing")
    else:
        name = "rope_freqs.weight"
        if name not in tensors:
            return rope
    tensor, count = tensors[name], len(rope.inv_freq)
    if tensor.dtype is not DType.F32 or tensor.shape != (count,):
        raise Fields(fields.where, {}).error(name, f"must be {count} values of type F32")
    values = list(memoryview(bytes(tensor.data)).cast("f"))
    return divided(rope, Fields(fields.where, {name: values}).numbers(name, count, low=MIN_FACTOR, high=MAX_FACTOR))
