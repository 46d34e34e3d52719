"""The dense decoder of `headrace.weights.spec`, for one token at one position.

One token at a time is what makes the promise of `headrace.backends.Backend` true by construction: every product has
the same shape whatever else is computed in the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.types import BLOCK_SIZE
from headrace.weights.spec import Activation, ModelSpec, Rope

Floats = NDArray[Any]
"""float32 throughout; the type checker believes that a Python float would widen it."""


def rms_norm(x: Floats, weight: Floats, spec: ModelSpec) -> Floats:
    """Root-mean-square norm over the last axis (Zhang and Sennrich, 2019)."""
    scale = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(spec.norm_eps))
    normed: Floats = x * scale * (np.float32(spec.norm_offset) + weight)
    return normed


def rotate(x: Floats, position: int, rope: Rope) -> Floats:
    """Rotary embedding of heads x [heads, head_dim] (Su et al., 2021)."""
    angle = np.float32(position) * np.array(rope.inv_freq, np.float32)
    cos, sin = np.cos(angle) * np.float32(rope.magnitude), np.sin(angle) * np.float32(rope.magnitude)
    pairs = len(rope.inv_freq)
    dims = np.arange(2 * pairs)
    first, second = (dims[0::2], dims[1::2]) if rope.interleaved else (dims[:pairs], dims[pairs:])
    out = x.copy()
    out[:, first] = x[:, first] * cos - x[:, second] * sin
    out[:, second] = x[:, second] * cos + x[:, first] * sin
    return out


def attend(q: Floats, k: Floats, v: Floats, spec: ModelSpec) -> Floats:
    """q [heads, head_dim] over k and v [tokens, kv_heads, head_dim]; consecutive query heads share a KV head."""
    group = spec.num_heads // spec.num_kv_heads
    out = np.empty_like(q)
    for head in range(spec.num_heads):
        scores = k[:, head // group] @ q[head] * np.float32(spec.attention_scale)
        if spec.attention_softcap is not None:
            cap = np.float32(spec.attention_softcap)
            scores = cap * np.tanh(scores / cap)
        weights = np.exp(scores - scores.max())
        out[head] = (weights / weights.sum()) @ v[:, head // group]
    return out


def in_8_bits(x: Floats) -> Floats:
    """Heads x [heads, head_dim] as the nearest of 255 multiples of each head's largest magnitude / 127."""
    most = np.abs(x).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127.0), most, out=np.zeros_like(most), where=most > 1e-30)
    rounded: Floats = np.rint(x * inverse) * (most / np.float32(127.0))
    return rounded


def activate(x: Floats, kind: Activation) -> Floats:
    """The gate's non-linearity."""
    if kind is Activation.SILU:
        return x / (1.0 + np.exp(-np.maximum(x, np.float32(-80.0))))
    inner = np.float32(np.sqrt(2.0 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    gelu: Floats = np.float32(0.5) * x * (1.0 + np.tanh(inner))
    return gelu


class Decoder:
    """Weights in float32 and the forward pass that they define."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Floats], kv_8bit: bool = False) -> None:
        self.spec = spec
        self.tensors = tensors
        self._kept = in_8_bits if kv_8bit else np.copy

    def hidden(self, token: int, position: int, blocks: Sequence[int], kv: Floats) -> Floats:
        """The last layer's output for ``token``; writes its keys and values into ``kv``.

        ``kv`` is [blocks, layers, 2 (k, v), BLOCK_SIZE, kv_heads, head_dim]; earlier positions must be there.
        """
        x: Floats = self.tensors["embedding"][token] * np.float32(self.spec.embedding_scale)
        for layer in range(self.spec.num_layers):
            x = x + self._attention(layer, x, position, blocks, kv)
            x = x + self._feed_forward(layer, x)
        return x

    def final(self, hidden: Floats) -> Floats:
        """The state after the final norm, of which logits are made, from a last layer's output."""
        return rms_norm(hidden, self.tensors["norm"], self.spec)

    def logits(self, hidden: Floats) -> Floats:
        """Logits [vocab] from a last layer's output."""
        head = self.tensors["embedding" if self.spec.tied_embeddings else "lm_head"]
        z: Floats = head @ self.final(hidden)
        if self.spec.logit_softcap is not None:
            cap = np.float32(self.spec.logit_softcap)
            z = cap * np.tanh(z / cap)
        return z

    def _attention(self, layer: int, x: Floats, position: int, blocks: Sequence[int], kv: Floats) -> Floats:
        spec, rope = self.spec, self.spec.ropes[self.spec.layer_rope[layer]]
        normed = self._norm(layer, "attention_norm", x)
        q = self._linear(layer, "q", normed, spec.qkv_bias).reshape(spec.num_heads, spec.head_dim)
        k = self._linear(layer, "k", normed, spec.qkv_bias).reshape(spec.num_kv_heads, spec.head_dim)
        v = self._linear(layer, "v", normed, spec.qkv_bias).reshape(spec.num_kv_heads, spec.head_dim)
        if spec.qk_norm:
            q, k = self._norm(layer, "q_norm", q), self._norm(layer, "k_norm", k)
        slot = (blocks[position // BLOCK_SIZE], layer)
        kv[slot][0, position % BLOCK_SIZE] = self._kept(rotate(k, position, rope))
        kv[slot][1, position % BLOCK_SIZE] = self._kept(v)
        window = spec.layer_window[layer]
        seen = np.arange(0 if window is None else max(0, position - window + 1), position + 1)
        stored = kv[np.asarray(blocks)[seen // BLOCK_SIZE], layer, :, seen % BLOCK_SIZE]
        out = attend(rotate(q, position, rope), stored[:, 0], stored[:, 1], spec).reshape(-1)
        out = self._linear(layer, "o", out, spec.o_bias)
        return self._norm(layer, "attention_post_norm", out) if spec.post_norms else out

    def _feed_forward(self, layer: int, x: Floats) -> Floats:
        normed = self._norm(layer, "ffn_norm", x)
        gate = activate(self._linear(layer, "gate", normed), self.spec.activation)
        out = self._linear(layer, "down", gate * self._linear(layer, "up", normed))
        return self._norm(layer, "ffn_post_norm", out) if self.spec.post_norms else out

    def _norm(self, layer: int, name: str, x: Floats) -> Floats:
        return rms_norm(x, self.tensors[f"layers.{layer}.{name}"], self.spec)

    def _linear(self, layer: int, name: str, x: Floats, bias: bool = False) -> Floats:
        out = self.tensors[f"layers.{layer}.{name}"] @ x
        return out + self.tensors[f"layers.{layer}.{name}_bias"] if bias else out
