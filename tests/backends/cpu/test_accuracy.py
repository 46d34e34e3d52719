"""Every instruction set and precision against the NumPy reference, on every variant of the specification."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from msgspec.structs import replace

from headrace.backends.reference.backend import ReferenceBackend
from headrace.backends.reference.backend import load as load_reference
from headrace.weights.spec import Activation, DType, ModelSpec
from tests.backends.cpu.conftest import Loader
from tests.backends.cpu.models import BASE, checkpoint, prompt, rope, whole, with_heads

ROTATED = rope(6, 500.0, magnitude=1.3)

VARIANTS: dict[str, ModelSpec] = {
    "base": BASE,
    "untied": replace(BASE, tied_embeddings=False),
    "biases": replace(BASE, qkv_bias=True, o_bias=True),
    "qk_norm": replace(BASE, qk_norm=True),
    "gemma": replace(
        BASE,
        post_norms=True,
        qk_norm=True,
        norm_offset=1.0,
        activation=Activation.GELU_TANH,
        embedding_scale=9.75,
        ropes=(rope(8), rope(8, 1e6)),
        layer_rope=(0, 1),
        layer_window=(24, None),
    ),
    "softcaps": replace(BASE, attention_softcap=5.0, logit_softcap=3.0),
    "windows": replace(BASE, layer_window=(1, 33)),
    "partial rope": replace(BASE, ropes=(ROTATED,)),
    "interleaved rope": replace(BASE, ropes=(replace(ROTATED, interleaved=True),), qkv_bias=True, qk_norm=True),
    "one kv head": with_heads(8, 1, 32),
    "twenty heads to one": with_heads(20, 1, 8),
    "no sharing": with_heads(3, 3, 80),
    "large heads": with_heads(4, 2, 128),
    "256": with_heads(2, 1, 256),
    "odd head": with_heads(4, 2, 20),
    "long sums": replace(BASE, ffn_size=712),  # more than one part of k
    "longest sums": replace(BASE, ffn_size=8328),  # more than the second-level cache holds of many rows
    "odd sizes": replace(BASE, vocab_size=131, hidden_size=72, ffn_size=88),
}

LENGTH = 75


@functools.cache
def reference(name: str) -> tuple[ReferenceBackend, np.ndarray]:
    spec = VARIANTS[name]
    backend = load_reference(checkpoint(spec), dtype="float32", max_model_len=512, max_batch_tokens=512)
    backend.allocate_kv(16)
    return backend, whole(backend, spec, prompt(spec, LENGTH))


@pytest.mark.parametrize("name", VARIANTS)
def test_agrees_with_the_reference(name: str, make: Loader, dtype: str) -> None:
    spec = VARIANTS[name]
    _, want = reference(name)
    got = whole(make(spec, 16), spec, prompt(spec, LENGTH))
    error = np.abs(got - want)
    if dtype == "float32":
        assert error.max() < 1e-4
    else:  # bf16 keeps 8 bits of KV and activations; a wrong term anywhere shows as errors near 1
        assert np.sqrt((error**2).mean()) < 0.08


def test_a_context_of_several_splits(make: Loader, dtype: str) -> None:
    spec = replace(BASE, layer_window=(300, None))
    backend = load_reference(checkpoint(spec), dtype="float32", max_model_len=700, max_batch_tokens=700)
    backend.allocate_kv(48)
    tokens = prompt(spec, 650)
    error = np.abs(whole(make(spec), spec, tokens) - whole(backend, spec, tokens))
    assert error.max() < (1e-4 if dtype == "float32" else 0.3)


def test_scores_far_from_zero(make: Loader, dtype: str) -> None:
    """Weights are powers of (score - base) with a base of 0 until that would overflow or vanish."""
    spec = replace(BASE, attention_scale=40.0)
    backend = load_reference(checkpoint(spec), dtype="float32", max_model_len=300, max_batch_tokens=300)
    backend.allocate_kv(20)
    cpu = make(spec, 20)
    for length in (1, 2, 20, 150):
        tokens = prompt(spec, length)
        got, want = whole(cpu, spec, tokens), whole(backend, spec, tokens)
        assert np.isfinite(got).all()
        if dtype == "float32":  # bf16 rounds scores of hundreds by whole units
            assert np.abs(got - want).max() < 5e-3


@pytest.mark.parametrize("storage", [DType.F16, DType.BF16])
def test_stored_halves_load_as_the_floats_they_are(storage: DType, make: Loader) -> None:
    cp = checkpoint(BASE, dtype=storage)
    if storage is DType.F16:  # the same values again, as float32
        tensors = dict(cp.tensors)
        for name, t in cp.tensors.items():
            if t.dtype is DType.F16:
                values = np.frombuffer(t.data, np.float16).astype(np.float32)
                tensors[name] = replace(t, dtype=DType.F32, source=memoryview(values.tobytes()))
        plain = replace(cp, tensors=tensors)
    else:
        plain = checkpoint(BASE)
    tokens = prompt(BASE, 20)
    assert np.array_equal(whole(make(cp, 8), BASE, tokens), whole(make(plain, 8), BASE, tokens))
