"""Tiny models as GGUF files, converted the way llama.cpp's converter does: with the `gguf` package alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Stored
from numpy.typing import NDArray

Array = NDArray[Any]

_SCALES_AT = {Stored.Q4_K: (0, 2), Stored.Q5_K: (0, 2), Stored.Q6_K: (208,)}
"""Where the K formats keep their float16 scale and scale of minima: `gguf` can read them, and not write them."""


def encode(weights: Array, stored: Stored, rng: np.random.Generator) -> Array:
    """``weights`` [rows, columns] as rows of bytes. The K formats give random blocks of the same spread instead."""
    if stored not in _SCALES_AT:
        raw: Array = gguf.quants.quantize(weights.astype(np.float32), stored)
        return raw
    elements, size = gguf.GGML_QUANT_SIZES[stored]
    blocks = rng.integers(0, 256, (weights.size // elements, size), dtype=np.uint8)
    middle = {Stored.Q4_K: 7.5, Stored.Q5_K: 15.5, Stored.Q6_K: 0.0}[stored]

    def rescale(factor: float) -> Array:
        for at, scale in zip(_SCALES_AT[stored], (factor, factor * middle), strict=False):
            blocks[:, at : at + 2] = np.array([scale], np.float16).view(np.uint8)
        return blocks.reshape(len(weights), -1)

    spread = gguf.quants.dequantize(rescale(2.0**-10), stored).std()
    return rescale(2.0**-10 * float(weights.std() / spread))


def permute(weights: Array, heads: int) -> Array:
    """The converter's order of a llama q or k matrix: each head's two halves interleaved."""
    return weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def unpermute(weights: Array, heads: int) -> Array:
    """The inverse of `permute`."""
    return weights.reshape(heads, len(weights) // heads // 2, 2, -1).swapaxes(1, 2).reshape(weights.shape)


def write(model: Any, path: Path, stored: Stored) -> None:
    """Write ``model`` with its matrices as ``stored``, and put what they became back into ``model``."""
    config, kind = model.config, model.config.model_type.removesuffix("_text")
    architecture = {"mistral": "llama"}.get(kind, kind)
    writer = gguf.GGUFWriter(str(path), architecture)
    _metadata(writer, config)
    code = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(code, config.num_hidden_layers)
    rng = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weights = tensor.numpy()
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if weights.ndim == 1:
            writer.add_tensor(target, weights + (1.0 if kind == "gemma3" else 0.0))
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2], 0)
        permuted = heads and architecture == "llama"
        raw = encode(permute(weights, heads) if permuted else weights, stored, rng)
        writer.add_tensor(target, raw, raw_dtype=stored)
        kept = gguf.quants.dequantize(raw, stored)
        tensor.copy_(torch.from_numpy(unpermute(kept, heads) if permuted else kept))
    _rope_factors(writer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ropes = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    full = ropes.get("full_attention", ropes)
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * full.get("partial_rotary_factor", 1.0)))
    if full["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(full["rope_type"]))
        writer.add_rope_scaling_factor(full["factor"])
        if "original_max_position_embeddings" in full:
            writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    words = [f"<{i}>" for i in range(config.vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_eos_token_id(2)


def _rope_factors(writer: gguf.GGUFWriter, config: Any) -> None:
    """Llama 3's scaling as the tensor of divisors that the converter makes of it."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy()
    pairs = len(scaled)
    plain = config.rope_parameters["rope_theta"] ** -(np.arange(pairs, dtype=np.float64) / pairs)
    writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
