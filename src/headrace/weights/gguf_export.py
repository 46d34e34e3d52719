"""A `Checkpoint` from safetensors → the metadata and tensors of a GGUF file: what `headrace.weights.gguf_spec` reads.

The file is meant for llama.cpp too and follows its converter: llama's q and k rows are permuted, Gemma's norms have 1
added, Phi-3's projections are fused, RoPE divisors are a tensor. A model that this cannot say is refused.
"""

from __future__ import annotations

import array
import math
from collections.abc import Callable, Sequence
from typing import Any

from headrace.errors import UnsupportedModel
from headrace.weights.gguf_spec import GGUF_ARCHITECTURES
from headrace.weights.names import gguf_names
from headrace.weights.rope import frequencies
from headrace.weights.spec import Checkpoint, DType, ModelSpec, Rope, Tensor

Floats = Callable[[Tensor], Sequence[float]]
"""A stored vector as float32 numbers."""


def exported_tensors(
    checkpoint: Checkpoint, convert: Callable[[str, Tensor], Tensor], floats: Floats
) -> dict[str, Tensor]:
    """The file's tensors. ``convert`` is given every matrix with its canonical name and stores it as it likes, row by
    row in the same order."""
    spec = checkpoint.spec
    permuted = GGUF_ARCHITECTURES[_architecture(spec)].interleaved
    tensors: dict[str, Tensor] = {}
    for name, parts in gguf_names(spec).items():
        stored = []
        for part in parts:
            tensor = checkpoint.tensors[part]
            role = part.rpartition(".")[2]
            if len(tensor.shape) == 1:
                tensor = _vector(tensor, floats, spec.norm_offset if "norm" in role else 0.0)
            else:
                tensor = convert(part, tensor)
            heads = {"q": spec.num_heads, "k": spec.num_kv_heads}.get(role.removesuffix("_bias"))
            stored.append(_permuted(tensor, heads) if permuted and heads else tensor)
        tensors[name] = stored[0] if len(stored) == 1 else _joined(stored, name)
    factors = _rope_factors(spec.ropes[0])
    if factors is not None and not _is_constant(factors):
        tensors["rope_freqs.weight"] = Tensor(
            DType.F32, (len(factors),), memoryview(array.array("f", factors)).cast("B")
        )
    return tensors


def exported_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """The file's metadata but for the tokenizer's; values as `headrace.weights.gguf_write.entry` takes them.

    Raises:
        UnsupportedModel: GGUF has no words for something in the specification.
    """
    spec = checkpoint.spec
    architecture = _architecture(spec)
    own: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "context_length": spec.max_positions,
        "embedding_length": spec.hidden_size,
        "block_count": spec.num_layers,
        "feed_forward_length": spec.ffn_size,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
        **_rope_metadata(spec),
    }
    if not math.isclose(spec.attention_scale, spec.head_dim**-0.5, rel_tol=1e-9):
        own["attention.scale"] = spec.attention_scale
    if spec.attention_softcap is not None:
        own["attn_logit_softcapping"] = spec.attention_softcap
    if spec.logit_softcap is not None:
        own["final_logit_softcapping"] = spec.logit_softcap
    windows = set(spec.layer_window) - {None}
    if len(windows) > 1:
        raise UnsupportedModel(f"{checkpoint.path}: sliding windows of several lengths cannot be written to GGUF")
    if windows:
        own["attention.sliding_window"] = windows.pop()
        own["attention.sliding_window_pattern"] = [window is not None for window in spec.layer_window]
    general = {"general.architecture": architecture, "general.type": "model", "general.name": checkpoint.name}
    return general | {f"{architecture}.{key}": value for key, value in own.items()}


def differences(ours: ModelSpec, theirs: ModelSpec) -> list[str]:
    """The names of fields in which a model read back differs from what was written, float32's rounding apart."""
    found = []
    for field in ModelSpec.__struct_fields__:
        if field in ("architecture", "norm_offset", "ropes", "layer_rope"):
            continue  # another name for the same, added to the weights, compared below
        a, b = getattr(ours, field), getattr(theirs, field)
        same = math.isclose(a, b, rel_tol=1e-6) if isinstance(a, float) and isinstance(b, float) else a == b
        if not same:
            found.append(field)
    for i, (a, b) in enumerate(zip(ours.layer_rope, theirs.layer_rope, strict=False)):
        one, other = ours.ropes[a], theirs.ropes[b]
        pairs = zip(one.inv_freq, other.inv_freq, strict=False)
        if len(one.inv_freq) != len(other.inv_freq) or not all(math.isclose(*pair, rel_tol=1e-6) for pair in pairs):
            return [*found, f"the rotary embedding of layer {i}"]
    return found


def _architecture(spec: ModelSpec) -> str:
    name = "llama" if spec.architecture == "mistral" else spec.architecture
    if name not in GGUF_ARCHITECTURES:
        raise UnsupportedModel(f"architecture {name!r} cannot be written to GGUF")
    return name


def _rope_metadata(spec: ModelSpec) -> dict[str, Any]:
    if any(rope.magnitude != 1.0 for rope in spec.ropes):
        raise UnsupportedModel(
            f"{spec.architecture}: RoPE scaling with a magnitude (yarn, longrope) cannot be written to GGUF"
        )
    first = spec.ropes[0]
    values: dict[str, Any] = {"rope.freq_base": _base(first), "rope.dimension_count": 2 * len(first.inv_freq)}
    if len(spec.ropes) > 1:
        values["rope.freq_base_swa"] = _base(spec.ropes[1])
    factors = _rope_factors(first)
    if factors is not None and _is_constant(factors):
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": factors[0]}
    return values


def _base(rope: Rope) -> float:
    """Theta: the first frequencies are one step of it apart in every kind of scaling that leaves short waves alone."""
    if len(rope.inv_freq) < 2:
        return 10_000.0
    base = (rope.inv_freq[0] / rope.inv_freq[1]) ** len(rope.inv_freq)
    return float(round(base)) if math.isclose(base, round(base), rel_tol=1e-6) else base


def _rope_factors(rope: Rope) -> list[float] | None:
    """What the plain frequencies are divided by; None if by nothing."""
    plain = frequencies(_base(rope), 2 * len(rope.inv_freq))
    factors = [p / f for p, f in zip(plain, rope.inv_freq, strict=True)]
    return None if all(math.isclose(f, 1.0, rel_tol=1e-6) for f in factors) else factors


def _is_constant(factors: list[float]) -> bool:
    return all(math.isclose(f, factors[0], rel_tol=1e-6) for f in factors)


def _vector(tensor: Tensor, floats: Floats, offset: float) -> Tensor:
    values = array.array("f", [value + offset for value in floats(tensor)])
    return Tensor(DType.F32, tensor.shape, memoryview(values).cast("B"))


def _permuted(tensor: Tensor, heads: int) -> Tensor:
    """Each head's rows (j, j + half) side by side: the order in which GGUF's llama rotates neighbours."""
    row = tensor.nbytes // tensor.shape[0]
    half = tensor.shape[0] // heads // 2

    def make() -> memoryview:
        data = tensor.data
        order = (head * 2 * half + i * half + j for head in range(heads) for j in range(half) for i in range(2))
        return memoryview(b"".join([data[at * row : (at + 1) * row] for at in order]))

    return Tensor(tensor.dtype, tensor.shape, make)


def _joined(parts: list[Tensor], name: str) -> Tensor:
    if len({part.dtype for part in parts}) > 1:
        raise UnsupportedModel(f"{name}: the parts of a fused projection are stored in different types")
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Tensor(parts[0].dtype, shape, lambda: memoryview(b"".join([part.data for part in parts])))
