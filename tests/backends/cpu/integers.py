"""The arithmetic of native/integer.h in NumPy: the oracle of products with integer activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.backends.reference.backend import ReferenceBackend
from headrace.backends.reference.decoder import Decoder, Floats
from headrace.backends.reference.dequantize import dequantize
from headrace.weights.spec import Checkpoint, DType, ModelSpec, Tensor

Integers = NDArray[Any]
F = np.float32
NIBBLES = (DType.Q4_0, DType.Q4_1, DType.Q4_K)


@dataclass(frozen=True)
class Grid:
    """A matrix [rows, k] of 8-bit integers; row i is on a grid of its own, of step ``unit[i]``."""

    integers: Integers
    unit: Floats

    @property
    def values(self) -> Floats:
        return self.unit[:, None] * self.integers.astype(F)


def inverse(most: Floats, limit: float) -> Floats:
    return np.where(most > F(1e-30), F(limit) / np.where(most > F(1e-30), most, F(1)), F(0)).astype(F)


def grid(t: Tensor) -> Grid:
    """Weights on 8-bit grids, as they are packed at load."""
    values = dequantize(t)
    if t.dtype not in NIBBLES:
        most = np.abs(values).max(axis=1)
        return Grid(np.rint(values * inverse(most, 127.0)[:, None]).astype(np.int64), most / F(127))
    scale, middle = lines(t, values)
    quants = np.where(scale[..., None] != 0, (values.reshape(*scale.shape, 32) - middle[..., None]), 0)
    quants = np.rint(quants / np.where(scale == 0, F(1), scale)[..., None]).astype(np.int64)
    magnitudes = [np.abs(values), 8 * np.abs(scale), np.abs(middle)]
    most = np.concatenate(magnitudes, axis=1).max(axis=1).astype(F)
    steps = inverse(most, 127.0)[:, None]
    s = np.rint(F(8) * scale * steps).astype(np.int64)
    m = np.rint(middle * steps).astype(np.int64)
    w = ((quants * s[..., None] + 4) >> 3) + m[..., None]
    return Grid(np.clip(w, -128, 127).reshape(values.shape), most / F(127))


def lines(t: Tensor, values: Floats) -> tuple[Floats, Floats]:
    """Scale and middle [rows, groups]: weights of a group of 32 are scale * (quant - 8) + middle."""
    rows, k = t.shape
    if t.dtype is DType.Q4_K:
        blocks = np.frombuffer(t.data, np.uint8).reshape(rows, k // 256, 144)
        halves = blocks[..., :4].copy().view(np.float16).astype(F)
        low, high, extra = (blocks[..., 4 + 4 * i : 8 + 4 * i] for i in range(3))
        six = [np.concatenate([low & 63, (extra & 15) | (low >> 2 & 0x30)], -1)]
        six += [np.concatenate([high & 63, (extra >> 4) | (high >> 2 & 0x30)], -1)]
        scale = (halves[..., :1] * six[0].astype(F)).reshape(rows, -1)
        return scale, (F(8) * scale - (halves[..., 1:] * six[1].astype(F)).reshape(rows, -1))
    size = 18 if t.dtype is DType.Q4_0 else 20
    blocks = np.frombuffer(t.data, np.uint8).reshape(rows, k // 32, size)
    scale = blocks[..., :2].copy().view(np.float16).astype(F)[..., 0]
    if t.dtype is DType.Q4_0:
        return scale, np.zeros_like(scale)
    return scale, blocks[..., 2:4].copy().view(np.float16).astype(F)[..., 0] + F(8) * scale


def product(x: Floats, w: Grid, planes: int) -> Floats:
    """The matrix times x [k], which is put on a grid of its own first."""
    limit = 127.0 if planes == 1 else 127.0 * 256
    most = np.abs(x).max().astype(F)
    q = np.rint(x * inverse(most, limit))
    high = np.rint(q * F(1 / 255)) if planes == 2 else np.zeros_like(q)
    low = q - 255 * high
    assert np.abs(high).max() <= 127
    assert np.abs(low).max() <= 127
    sums = [(w.integers @ part.astype(np.int64)).astype(F) for part in (high, low)]
    total = sums[0] * F(255) + sums[1] if planes == 2 else sums[1]
    result: Floats = total * (most / F(limit)) * w.unit
    return result


class IntegerDecoder(Decoder):
    """The reference decoder with integer products wherever weights are quantised."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor], planes: int) -> None:
        self.grids = {name: grid(t) for name, t in tensors.items() if t.dtype not in (DType.F32, DType.F16, DType.BF16)}
        super().__init__(
            spec,
            {name: self.grids[name].values if name in self.grids else dequantize(t) for name, t in tensors.items()},
        )
        self.planes = planes

    def logits(self, hidden: Floats) -> Floats:
        head = "embedding" if self.spec.tied_embeddings else "lm_head"
        return product(self.final(hidden), self.grids[head], self.planes)

    def _linear(self, layer: int, name: str, x: Floats, bias: bool = False) -> Floats:
        out = product(x, self.grids[f"layers.{layer}.{name}"], self.planes)
        return out + self.tensors[f"layers.{layer}.{name}_bias"] if bias else out


def reference(cp: Checkpoint, planes: int) -> ReferenceBackend:
    backend = ReferenceBackend(IntegerDecoder(cp.spec, cp.tensors, planes), 1024, 1024)
    backend.allocate_kv(8)
    return backend
