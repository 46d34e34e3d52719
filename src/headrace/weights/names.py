"""Tensor names and shapes: from the two formats' names to the canonical ones of `headrace.weights.spec`.

Every tensor of a model is accounted for: missing, unexpected and misshapen ones are errors that name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights.spec import DType, ModelSpec, Tensor

_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,4})\.(.+)", re.ASCII)
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(.+)", re.ASCII)

# A name in the file → the canonical names it holds, in row order; more than one for a fused projection.
_Names = Mapping[str, tuple[str, ...]]

_HF_TOP: _Names = {"embed_tokens.weight": ("embedding",), "norm.weight": ("norm",)}
_HF_LAYER: _Names = {
    "input_layernorm.weight": ("attention_norm",),
    **{f"self_attn.{p}_proj.weight": (p,) for p in "qkvo"},
    **{f"self_attn.{p}_proj.bias": (f"{p}_bias",) for p in "qkvo"},
    "self_attn.qkv_proj.weight": ("q", "k", "v"),
    "self_attn.q_norm.weight": ("q_norm",),
    "self_attn.k_norm.weight": ("k_norm",),
    "post_attention_layernorm.weight": ("ffn_norm",),
    "mlp.gate_proj.weight": ("gate",),
    "mlp.up_proj.weight": ("up",),
    "mlp.gate_up_proj.weight": ("gate", "up"),
    "mlp.down_proj.weight": ("down",),
}
_HF_LAYER_POST_NORMS: _Names = {
    **_HF_LAYER,
    "post_attention_layernorm.weight": ("attention_post_norm",),
    "pre_feedforward_layernorm.weight": ("ffn_norm",),
    "post_feedforward_layernorm.weight": ("ffn_post_norm",),
}
_GGUF_TOP: _Names = {
    "token_embd.weight": ("embedding",),
    "output.weight": ("lm_head",),
    "output_norm.weight": ("norm",),
}
_GGUF_LAYER: _Names = {
    "attn_norm.weight": ("attention_norm",),
    **{f"attn_{p}.weight": (p,) for p in "qkv"},
    **{f"attn_{p}.bias": (f"{p}_bias",) for p in "qkv"},
    "attn_qkv.weight": ("q", "k", "v"),
    "attn_output.weight": ("o",),
    "attn_output.bias": ("o_bias",),
    "attn_q_norm.weight": ("q_norm",),
    "attn_k_norm.weight": ("k_norm",),
    "post_attention_norm.weight": ("attention_post_norm",),
    "ffn_norm.weight": ("ffn_norm",),
    "ffn_gate.weight": ("gate",),
    "ffn_up.weight": ("up",),
    "ffn_down.weight": ("down",),
    "post_ffw_norm.weight": ("ffn_post_norm",),
}
_GGUF_LAYER_PHI3: _Names = {**_GGUF_LAYER, "ffn_up.weight": ("gate", "up")}

_VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
GGUF_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Consumed by the specification, not by a backend."""


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Canonical name → shape of every tensor that a model of this specification has."""
    q, kv, hidden = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim, spec.hidden_size
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (hidden,),
        "q": (q, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, q),
        "ffn_norm": (hidden,),
        "gate": (spec.ffn_size, hidden),
        "up": (spec.ffn_size, hidden),
        "down": (hidden, spec.ffn_size),
    }
    if spec.qkv_bias:
        layer |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    if spec.o_bias:
        layer |= {"o_bias": (hidden,)}
    if spec.qk_norm:
        layer |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    if spec.post_norms:
        layer |= {"attention_post_norm": (hidden,), "ffn_post_norm": (hidden,)}
    shapes: dict[str, tuple[int, ...]] = {"embedding": (spec.vocab_size, hidden), "norm": (hidden,)}
    if not spec.tied_embeddings:
        shapes["lm_head"] = (spec.vocab_size, hidden)
    for i in range(spec.num_layers):
        shapes.update({f"layers.{i}.{name}": shape for name, shape in layer.items()})
    return shapes


def from_safetensors(
    spec: ModelSpec, tensors: Mapping[str, Tensor], other: Mapping[str, str], where: str
) -> dict[str, Tensor]:
    """Canonical tensors of a model written by transformers.

    The decoder may sit under any prefix (``model.``, ``language_model.model.``); the embedding's name tells which.

    Raises:
        ModelFileError: a tensor is missing, unexpected or misshapen.
        UnsupportedModel: a weight is stored in a type that is not served.
    """
    names = [*tensors, *other]
    prefix = next((n.removesuffix("embed_tokens.weight") for n in names if n.endswith("embed_tokens.weight")), "model.")
    layer = _HF_LAYER_POST_NORMS if spec.post_norms else _HF_LAYER
    renames: dict[str, tuple[str, ...]] = {}
    unexpected = []
    for name in names:
        canonical = _canonical(name.removeprefix(prefix), _HF_TOP, _LAYER, layer) if name.startswith(prefix) else None
        if canonical is None and name.endswith("lm_head.weight"):
            # With tied embeddings some writers store the head a second time; it is the embedding.
            canonical = () if spec.tied_embeddings else ("lm_head",)
        if canonical is not None:
            renames[name] = canonical
        elif not name.endswith("rotary_emb.inv_freq") and not (spec.architecture == "gemma3" and _VISION.match(name)):
            unexpected.append(name)
    for name in other:
        if renames.get(name):
            raise UnsupportedModel(f"{where}: tensor {name!r} is stored as {other[name]}; served: F32, F16, BF16")
    return _assembled(spec, {n: c for n, c in renames.items() if n in tensors}, tensors, unexpected, where)


def from_gguf(spec: ModelSpec, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Canonical tensors of a GGUF model.

    Raises:
        ModelFileError: a tensor is missing, unexpected or misshapen.
    """
    layer = _GGUF_LAYER_PHI3 if spec.architecture == "phi3" else _GGUF_LAYER
    renames: dict[str, tuple[str, ...]] = {}
    unexpected = []
    for name in tensors:
        canonical = _canonical(name, _GGUF_TOP, _BLOCK, layer)
        if canonical is not None:
            renames[name] = canonical
        elif name not in GGUF_ROPE_TENSORS:
            unexpected.append(name)
    return _assembled(spec, renames, tensors, unexpected, where)


def gguf_names(spec: ModelSpec) -> dict[str, tuple[str, ...]]:
    """The tensors of a GGUF file of this model, each with the canonical names of what it holds, in row order."""
    fused = spec.architecture == "phi3"
    layer = _GGUF_LAYER_PHI3 if fused else _GGUF_LAYER
    apart = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight")
    left_out = apart if fused else ("attn_qkv.weight",)
    expected = expected_shapes(spec)
    names = {name: parts for name, parts in _GGUF_TOP.items() if parts[0] in expected}
    for i in range(spec.num_layers):
        for name, parts in layer.items():
            canonical = tuple(f"layers.{i}.{part}" for part in parts)
            if name not in left_out and canonical[0] in expected:
                names[f"blk.{i}.{name}"] = canonical
    return names


def _canonical(name: str, top: _Names, layer_pattern: re.Pattern[str], layer: _Names) -> tuple[str, ...] | None:
    if name in top:
        return top[name]
    match = layer_pattern.fullmatch(name)
    if match is None or match[2] not in layer:
        return None
    return tuple(f"layers.{match[1]}.{part}" for part in layer[match[2]])


def _assembled(
    spec: ModelSpec,
    renames: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, Tensor],
    unexpected: list[str],
    where: str,
) -> dict[str, Tensor]:
    expected = expected_shapes(spec)
    result: dict[str, Tensor] = {}
    for name, parts in renames.items():
        if any(part not in expected for part in parts):
            unexpected.append(name)
            continue
        for part, tensor in _split(tensors[name], [(part, expected[part]) for part in parts], f"{where}: {name}"):
            if part in result:
                raise ModelFileError(f"{where}: {part} is stored twice, the second time as {name}")
            result[part] = tensor
    if unexpected:
        raise ModelFileError(f"{where}: unexpected for {spec.architecture}: {_some(unexpected)}")
    missing = expected.keys() - result.keys()
    if missing:
        raise ModelFileError(f"{where}: missing for {spec.architecture}: {_some(sorted(missing))}")
    return result


def _split(tensor: Tensor, parts: list[tuple[str, tuple[int, ...]]], where: str) -> Iterable[tuple[str, Tensor]]:
    """The tensor as its parts, row ranges in order, when the shapes add up exactly."""
    if not parts:
        return
    shape = (sum(shape[0] for _, shape in parts), *parts[0][1][1:])
    if tensor.shape != shape:
        raise ModelFileError(f"{where}: has shape {list(tensor.shape)}; the configuration implies {list(shape)}")
    if len(shape) == 1 and tensor.dtype not in (DType.F32, DType.F16, DType.BF16):
        raise ModelFileError(f"{where}: a vector stored as {tensor.dtype}; F32, F16 or BF16 is expected")
    if len(parts) == 1:
        yield parts[0][0], tensor
        return
    bounds = pairwise(accumulate((part_shape[0] for _, part_shape in parts), initial=0))
    for (part, _), (begin, end) in zip(parts, bounds, strict=True):
        yield part, tensor.rows(begin, end)


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:200] for name in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
