"""Tiny random models of every architecture, as `transformers` itself writes them, and the logits that it gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

VOCAB = 99
"""Odd on purpose: no kernel's tile divides it."""

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Architecture:
    """How to build one configuration, and the context to serve it with (longrope's factors depend on it)."""

    config: Callable[[], Any]
    max_model_len: int = 96
    prompt_length: int = 45


def rope(kind: str, **rest: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **rest}


def llama(**changes: Any) -> Any:
    return transformers.LlamaConfig(**{**SIZES, "tie_word_embeddings": False, **changes})


def phi3(**changes: Any) -> Any:
    return transformers.Phi3Config(**{**SIZES, "tie_word_embeddings": False, "sliding_window": None, **changes})


def gemma3(**changes: Any) -> Any:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    ropes = {
        "sliding_attention": rope("default"),
        "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
    }
    special = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 12}
    return transformers.Gemma3TextConfig(
        **{**SIZES, **special, "layer_types": kinds, "rope_parameters": ropes, **changes}
    )


LONGROPE = rope(
    "longrope",
    short_factor=[1.0 + 0.1 * i for i in range(8)],
    long_factor=[1.0 + 0.7 * i for i in range(8)],
    original_max_position_embeddings=32,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32)
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(llama),
    "llama-tied": Architecture(lambda: llama(tie_word_embeddings=True)),
    "llama-biases": Architecture(lambda: llama(attention_bias=True)),
    "llama-head-dim": Architecture(lambda: llama(head_dim=32, num_key_value_heads=6)),
    "llama-rope-linear": Architecture(lambda: llama(rope_parameters=rope("linear", factor=4.0))),
    "llama-rope-llama3": Architecture(lambda: llama(rope_parameters=LLAMA3)),
    "llama-rope-yarn": Architecture(lambda: llama(rope_parameters=YARN)),
    "mistral": Architecture(lambda: transformers.MistralConfig(**SIZES, sliding_window=20)),
    "qwen2": Architecture(lambda: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen2-window": Architecture(
        lambda: transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=10, max_window_layers=1)
    ),
    "qwen2-rope-yarn": Architecture(lambda: transformers.Qwen2Config(**SIZES, rope_parameters=YARN)),
    "qwen3": Architecture(lambda: transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=False)),
    "gemma3": Architecture(gemma3),
    "phi3": Architecture(phi3),
    "phi3-window-partial": Architecture(
        lambda: phi3(sliding_window=18, rope_parameters=rope("default", partial_rotary_factor=0.5))
    ),
    "phi3-longrope-long": Architecture(lambda: phi3(rope_parameters=LONGROPE, original_max_position_embeddings=32)),
    "phi3-longrope-short": Architecture(
        lambda: phi3(rope_parameters=LONGROPE, original_max_position_embeddings=32), max_model_len=32, prompt_length=30
    ),
}


def randomise(model: Any, seed: int) -> None:
    """Give every parameter, norms and biases too, values that matter and logits a spread of a few units."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data += 0.2 * noise
        elif parameter.ndim == 1 or "embed" in name:
            parameter.data = 0.3 * noise
        else:
            parameter.data = 1.5 * noise / parameter.shape[1] ** 0.5


def build(config: Any, seed: int = 0) -> Any:
    """A random model of ``config`` in float32 with eager attention."""
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    randomise(model, seed)
    return model


def save(model: Any, path: Path, shard_size: str = "5GB") -> None:
    """Write the model as `transformers` does, with the least tokenizer that a model directory needs."""
    model.save_pretrained(path, max_shard_size=shard_size)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<pad>"},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


def logprobs(model: Any, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Log-softmax of the model's logits after each of ``tokens``: [tokens, vocab]."""
    with torch.no_grad():
        logits = model(torch.tensor([list(tokens)])).logits[0].double()
    result: NDArray[np.float64] = torch.log_softmax(logits, -1).numpy()
    return result
