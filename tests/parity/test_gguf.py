"""GGUF files: logits within 1e-4 of `transformers` with the same (dequantised) weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from gguf import GGMLQuantizationType as Stored

from headrace.weights import open_checkpoint
from headrace.weights.spec import DType
from tests.parity import gguf_models, tiny
from tests.parity.conftest import BACKENDS
from tests.parity.steps import Rows, compute

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
"""A K block takes 256 elements of a row."""

WINDOWS = {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 12}
GEMMA_KINDS = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama-llama3": lambda: tiny.llama(rope_parameters=tiny.LLAMA3),
    "llama-linear": lambda: tiny.llama(rope_parameters=tiny.rope("linear", factor=4.0), tie_word_embeddings=True),
    "mistral-window": lambda: transformers.MistralConfig(**tiny.SIZES, sliding_window=20),
    "qwen2": lambda: transformers.Qwen2Config(**tiny.SIZES, tie_word_embeddings=True),
    "qwen2-yarn": lambda: transformers.Qwen2Config(**tiny.SIZES, rope_parameters=tiny.YARN),
    "qwen3": lambda: transformers.Qwen3Config(**tiny.SIZES, head_dim=32, tie_word_embeddings=False),
    "gemma3": lambda: tiny.gemma3(**WINDOWS, layer_types=GEMMA_KINDS),
    "phi3": tiny.phi3,
}


@dataclass(frozen=True)
class Written:
    """A file, and what `transformers` makes of the same weights."""

    path: Path
    tokens: list[int]
    expected: Rows


def write(config: Any, stored: Stored, folder: Path) -> Written:
    model = tiny.build(config)
    gguf_models.write(model, folder / "tiny.gguf", stored)
    tokens = np.random.default_rng(8).integers(0, tiny.VOCAB, 40).tolist()
    return Written(folder / "tiny.gguf", tokens, tiny.logprobs(model, tokens))


@pytest.fixture(scope="module", params=list(DType))
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tiny.llama(**WIDE), Stored[request.param.value], tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module", params=CONFIGS)
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(CONFIGS[request.param](), Stored.F32, tmp_path_factory.mktemp("architecture"))


def assert_parity(written: Written, backend_name: str) -> None:
    backend = BACKENDS[backend_name](open_checkpoint(written.path, max_model_len=64), 64)
    backend.allocate_kv(3)
    ours = compute(backend, written.tokens, [2, 0, 1], [16, 21, 3])
    backend.close()
    np.testing.assert_allclose(ours, written.expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_storage_type(stored: Written, backend: str) -> None:
    assert_parity(stored, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_architecture(architecture: Written, backend: str) -> None:
    assert_parity(architecture, backend)
