"""Rotary embedding parameters → frequencies. Each scaling kind is one pure function.

The authority is transformers' ``modeling_rope_utils``; the papers are cited where the formulas come from one. A kind
turns ``base`` (RoPE theta) and ``dim`` (rotated dimensions of a head) into (inv_freq, magnitude).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from headrace.errors import UnsupportedModel
from headrace.weights.files import Fields
from headrace.weights.spec import Rope

MIN_FACTOR, MAX_FACTOR = 1e-4, 1e6
"""Bounds of every scaling factor and divisor: beyond them frequencies are no longer numbers to compute with."""
MAX_CONTEXT = 1 << 31


class RopeContext(Struct, frozen=True):
    """What scaling depends on besides its own parameters.

    ``head_dim`` is how many dimensions may rotate; ``positions`` is the checkpoint's longest context in tokens;
    ``original`` the one it was pre-trained with, where config.json says so outside the RoPE parameters; ``wanted``
    the context that will be served.
    """

    head_dim: int
    positions: int
    original: int | None
    wanted: int

    def original_positions(self, params: Fields) -> int:
        """Positions before scaling: the checkpoint's own field first (Phi-3's way), then the parameters'."""
        if self.original is not None:
            return self.original
        return params.integer("original_max_position_embeddings", MAX_CONTEXT, default=self.positions)


def frequencies(base: float, dim: int) -> list[float]:
    """base^(-2j/dim) for every pair j (RoFormer, arXiv:2104.09864)."""
    return [base ** (-2 * j / dim) for j in range(dim // 2)]


def rope_from(params: Fields, context: RopeContext, *, base: float, partial: float = 1.0) -> Rope:
    """The embedding that config.json's ``rope_parameters`` (or ``rope_scaling``) describe.

    ``base`` and ``partial`` (the rotated share of a head) apply where ``params`` do not say otherwise.

    Raises:
        ModelFileError: a parameter is missing or out of range.
        UnsupportedModel: a scaling kind that is not served.
    """
    kind = params.string("rope_type", default=params.string("type", default="default"))
    base = params.number("rope_theta", low=1.0, default=base)
    dim = int(context.head_dim * params.number("partial_rotary_factor", high=1.0, default=partial))
    if dim < 2 or dim % 2:
        raise params.error(
            "partial_rotary_factor", f"leaves {dim} of {context.head_dim} dimensions; an even number is needed"
        )
    if kind not in _KINDS:
        raise UnsupportedModel(f"{params.where}: RoPE scaling {kind[:40]!r} is not served; served: {', '.join(_KINDS)}")
    inv_freq, magnitude = _KINDS[kind](params, context, base, dim)
    return Rope(tuple(inv_freq), magnitude)


def scaled_positions(params: Fields, positions: int) -> int:
    """The longest context in tokens. A checkpoint with YaRN may claim the one before scaling (Qwen 2.5 does); the
    other kinds have it counted in."""
    if params.string("rope_type", default=params.string("type", default="default")) != "yarn":
        return positions
    original = params.integer("original_max_position_embeddings", MAX_CONTEXT, default=positions)
    factor = params.number("factor", low=MIN_FACTOR, high=MAX_FACTOR, default=1.0)
    return max(positions, min(int(original * factor), MAX_CONTEXT))


def divided(rope: Rope, factors: Sequence[float]) -> Rope:
    """Each frequency divided by its factor: what GGUF's ``rope_freqs`` and ``rope_factors_*`` tensors mean."""
    return Rope(tuple(f / d for f, d in zip(rope.inv_freq, factors, strict=True)), rope.magnitude, rope.interleaved)


_Scaled = tuple[list[float], float]


def _default(params: Fields, context: RopeContext, base: float, dim: int) -> _Scaled:
    return frequencies(base, dim), 1.0


def _linear(params: Fields, context: RopeContext, base: float, dim: int) -> _Scaled:
    factor = params.number("factor", low=MIN_FACTOR, high=MAX_FACTOR)
    return [f / factor for f in frequencies(base, dim)], 1.0


def _llama3(params: Fields, context: RopeContext, base: float, dim: int) -> _Scaled:
    """Long waves divided by the factor, short ones kept, a smooth passage between (Llama 3.1's release)."""
    factor = params.number("factor", low=MIN_FACTOR, high=MAX_FACTOR)
    low = params.number("low_freq_factor", low=MIN_FACTOR, high=MAX_FACTOR)
    high = params.number("high_freq_factor", low=MIN_FACTOR, high=MAX_FACTOR)
    if high <= low:
        raise params.error("high_freq_factor", f"must be above low_freq_factor ({low:g})")
    original = context.original_positions(params)

    def scaled(frequency: float) -> float:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            return frequency
        if wavelength > original / low:
            return frequency / factor
        smooth = (original / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency

    return [scaled(f) for f in frequencies(base, dim)], 1.0


def _yarn(params: Fields, context: RopeContext, base: float, dim: int) -> _Scaled:
    """YaRN (arXiv:2309.00071): interpolate slow dimensions, keep fast ones, ramp between; scale attention."""
    original = context.original_positions(params)
    factor = params.number("factor", low=MIN_FACTOR, high=MAX_FACTOR, default=context.positions / original)
    beta_fast = params.number("beta_fast", low=MIN_FACTOR, high=MAX_FACTOR, default=32.0)
    beta_slow = params.number("beta_slow", low=MIN_FACTOR, high=MAX_FACTOR, default=1.0)

    def dimension_of(rotations: float) -> float:
        """The dimension that turns ``rotations`` times over the original context."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension_of(beta_fast), dimension_of(beta_slow)
    if params.flag("truncate", default=True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first if last != first else 0.001
    inv_freq = []
    for j, frequency in enumerate(frequencies(base, dim)):
        interpolated = min(max((j - first) / width, 0.0), 1.0)
        inv_freq.append(frequency / factor * interpolated + frequency * (1 - interpolated))
    return inv_freq, _yarn_magnitude(params, factor)


def _yarn_magnitude(params: Fields, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if params.get("attention_factor") is not None:
        return params.number("attention_factor", low=MIN_FACTOR, high=MAX_FACTOR)
    if params.get("mscale") and params.get("mscale_all_dim"):
        return mscale(params.number("mscale", high=MAX_FACTOR)) / mscale(
            params.number("mscale_all_dim", high=MAX_FACTOR)
        )
    return mscale(1.0)


def _longrope(params: Fields, context: RopeContext, base: float, dim: int) -> _Scaled:
    """LongRoPE (arXiv:2402.13753): one divisor per pair; the long set when the served context exceeds the original one.

    The choice is made once, at load (vLLM's rule): a running sequence cannot change set without recomputing its KV.
    """
    original = context.original_positions(params)
    chosen = "long_factor" if context.wanted > original else "short_factor"
    divisors = params.numbers(chosen, dim // 2, low=MIN_FACTOR, high=MAX_FACTOR)
    return [f / d for f, d in zip(frequencies(base, dim), divisors, strict=True)], longrope_magnitude(params, context)


def longrope_magnitude(params: Fields, context: RopeContext) -> float:
    """The attention factor of LongRoPE: given, or sqrt(1 + ln(factor) / ln(original context))."""
    if params.get("attention_factor") is not None:
        return params.number("attention_factor", low=MIN_FACTOR, high=MAX_FACTOR)
    original = context.original_positions(params)
    factor = params.number("factor", low=MIN_FACTOR, high=MAX_FACTOR, default=context.positions / original)
    return 1.0 if factor <= 1 or original <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


_KINDS: Mapping[str, Callable[[Fields, RopeContext, float, int], _Scaled]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
