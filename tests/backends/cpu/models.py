"""Tiny random models in memory, and how to run sequences through a backend in any cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from headrace.backends import Backend
from headrace.types import BLOCK_SIZE, Plan, PlanRow, RowSampling
from headrace.weights.spec import Checkpoint, DType, ModelSpec, Rope, Tensor, TextSource


def rope(pairs: int, base: float = 10000.0, *, interleaved: bool = False, magnitude: float = 1.0) -> Rope:
    return Rope(tuple(base ** (-j / pairs) for j in range(pairs)), magnitude, interleaved)


BASE = ModelSpec(
    architecture="llama",
    vocab_size=99,
    hidden_size=96,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    ffn_size=160,
    max_positions=4096,
    norm_eps=1e-5,
    ropes=(rope(8),),
    layer_rope=(0, 0),
    layer_window=(None, None),
    attention_scale=16**-0.5,
)


def with_heads(heads: int, kv_heads: int, dim: int) -> ModelSpec:
    return replace(
        BASE, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, ropes=(rope(dim // 2),), attention_scale=dim**-0.5
    )


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    h, q, kv = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    named: dict[str, tuple[int, ...]] = {"embedding": (spec.vocab_size, h), "norm": (h,)}
    if not spec.tied_embeddings:
        named["lm_head"] = (spec.vocab_size, h)
    for i in range(spec.num_layers):
        layer: dict[str, tuple[int, ...]] = {"attention_norm": (h,), "ffn_norm": (h,)}
        layer |= {"q": (q, h), "k": (kv, h), "v": (kv, h), "o": (h, q)}
        layer |= {"gate": (spec.ffn_size, h), "up": (spec.ffn_size, h), "down": (h, spec.ffn_size)}
        if spec.qkv_bias:
            layer |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
        if spec.o_bias:
            layer["o_bias"] = (h,)
        if spec.qk_norm:
            layer |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
        if spec.post_norms:
            layer |= {"attention_post_norm": (h,), "ffn_post_norm": (h,)}
        named |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return named


def tensor(values: np.ndarray, dtype: DType = DType.F32) -> Tensor:
    if dtype is DType.BF16:
        data = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    else:
        data = values.astype(np.float16 if dtype is DType.F16 else np.float32)
    return Tensor(dtype, values.shape, memoryview(data.tobytes()))


def checkpoint(spec: ModelSpec, seed: int = 0, dtype: DType = DType.F32) -> Checkpoint:
    """Random weights whose values bf16 holds exactly, so that both precisions compute the same model."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes(spec).items():
        role = name.rpartition(".")[2]
        values = rng.standard_normal(shape).astype(np.float32)
        if role.endswith("norm"):
            values = 1.0 - spec.norm_offset + 0.2 * values
        elif role.endswith("bias"):
            values = 0.3 * values
        elif role in ("embedding", "lm_head"):
            values = values * 0.5
        else:
            values = values * (1.2 / math.sqrt(shape[1]))
        exact = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        tensors[name] = tensor(exact, DType.F32 if values.ndim == 1 else dtype)
    return Checkpoint("tiny", "memory", spec, tensors, TextSource(tokenizer_json="none"))


def prompt(spec: ModelSpec, length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(1000 + seed).integers(0, spec.vocab_size, length))


def blocks_for(length: int, first: int = 0, step: int = 1) -> tuple[int, ...]:
    return tuple(first + step * i for i in range(-(-length // BLOCK_SIZE)))


def all_logprobs(spec: ModelSpec) -> RowSampling:
    return RowSampling(logprobs=spec.vocab_size)


def chunk_rows(
    spec: ModelSpec, tokens: Sequence[int], cuts: Sequence[int], blocks: Sequence[int], sequence: int = 0
) -> list[PlanRow]:
    """The rows that compute ``tokens`` in chunks ending at ``cuts`` and the end, each with its last logprobs."""
    rows, start = [], 0
    for end in (*cuts, len(tokens)):
        rows.append(PlanRow(sequence, tokens[start:end], start, blocks, all_logprobs(spec)))
        start = end
    return rows


def logprobs_of(backend: Backend, rows: Sequence[PlanRow]) -> list[np.ndarray]:
    """Runs rows in one step; each row's log-softmax over the whole vocabulary."""
    found = []
    for result in backend.run(Plan(tuple(rows))).rows:
        assert result.error is None
        assert result.logprobs is not None
        values = np.full(backend.vocab_size, np.nan, np.float32)
        for token, logprob in result.logprobs.top:
            values[token] = logprob
        found.append(values)
    return found


def whole(
    backend: Backend, spec: ModelSpec, tokens: Sequence[int], cuts: Sequence[int] = (), first: int = 0
) -> np.ndarray:
    """Logprobs after the last token, computed alone in the given chunks, in blocks from ``first`` on."""
    last = np.empty(0)
    for row in chunk_rows(spec, tokens, cuts, blocks_for(len(tokens), first)):
        (last,) = logprobs_of(backend, [row])
    return last
