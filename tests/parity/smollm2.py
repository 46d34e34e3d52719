"""SmolLM2 as `transformers` runs it: the same GGUF file's weights in a `LlamaForCausalLM`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from headrace.backends.reference.dequantize import dequantize
from headrace.weights.spec import Checkpoint
from tests.parity.gguf_models import unpermute

_NAMES = {
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    """The token ids of prompts.txt, by a byte-level BPE made here from the file's vocabulary and merges."""
    metadata = checkpoint.text.gguf or {}
    words: list[str] = list(metadata["tokenizer.ggml.tokens"])
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([w for w in words if w.startswith("<|") and w.endswith("|>")])
    lines = (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines()
    return [tokenizer.encode(line.replace("\\n", "\n")).ids for line in lines]


def in_transformers(checkpoint: Checkpoint) -> Any:
    """The model in float32."""
    spec = checkpoint.spec
    config = transformers.LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.ffn_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )
    state = {}
    for name, tensor in checkpoint.tensors.items():
        weights = dequantize(tensor)
        if name.startswith("layers."):
            _, layer, part = name.split(".")
            if part in ("q", "k"):
                weights = unpermute(weights, spec.num_heads if part == "q" else spec.num_kv_heads)
            name = f"layers.{layer}.{_NAMES[part]}"
        state["model." + {"embedding": "embed_tokens"}.get(name, name) + ".weight"] = torch.from_numpy(weights)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers were on the meta device too
    return model.eval()


def choices(model: Any, prompt: Sequence[int], text: Sequence[int]) -> NDArray[np.int64]:
    """The most likely token before each token of ``text``, given the prompt and the text so far."""
    result: NDArray[np.int64] = _logits(model, prompt, text).argmax(-1).numpy()
    return result


def regrets(model: Any, prompt: Sequence[int], text: Sequence[int]) -> NDArray[np.float32]:
    """How far the logit of each token of ``text`` lies below the best one there; all zero for the greedy text."""
    logits = _logits(model, prompt, text)
    result: NDArray[np.float32] = (logits.amax(-1) - logits[torch.arange(len(text)), torch.tensor(text)]).numpy()
    return result


def _logits(model: Any, prompt: Sequence[int], text: Sequence[int]) -> Any:
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
