"""A model as data: one specification of a dense decoder that all the supported architectures are values of.

Readers of ``config.json`` + safetensors and of GGUF both produce a `ModelSpec` and a map of tensors under the
canonical names below; every backend consumes them and knows nothing of file formats or architectures.

Canonical tensor names (shapes are [out, in], row-major; one entry a layer, ``{i}`` from 0):

===================================  ==========================  ===========================================
name                                 shape                       present
===================================  ==========================  ===========================================
``embedding``                        [vocab, hidden]             always
``lm_head``                          [vocab, hidden]             unless ``tied_embeddings``
``norm``                             [hidden]                    always (final RMSNorm)
``layers.{i}.attention_norm``        [hidden]                    always (before attention)
``layers.{i}.q`` / ``.k`` / ``.v``   [heads * head_dim, hidden]  always
``layers.{i}.o``                     [hidden, heads * head_dim]  always
``layers.{i}.{q,k,v,o}_bias``        [out]                       ``qkv_bias`` / ``o_bias``
``layers.{i}.q_norm`` / ``.k_norm``  [head_dim]                  ``qk_norm``
``layers.{i}.attention_post_norm``   [hidden]                    ``post_norms`` (after o, before the residual add)
``layers.{i}.ffn_norm``              [hidden]                    always (before the feed-forward)
``layers.{i}.gate`` / ``.up``        [ffn, hidden]               always
``layers.{i}.down``                  [hidden, ffn]               always
``layers.{i}.ffn_post_norm``         [hidden]                    ``post_norms``
===================================  ==========================  ===========================================
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field


class Activation(enum.StrEnum):
    """The gate's non-linearity: ``act(gate) * up``."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


class Rope(Struct, frozen=True):
    """Rotary embedding with every scaling kind already resolved to frequencies.

    ``inv_freq[j]`` is the angular frequency (radians per position) of pair ``j``; 2 * len(inv_freq) dimensions of a
    head rotate, the rest pass through. cos and sin are multiplied by ``magnitude`` (yarn and longrope scale it).
    ``interleaved`` pairs dimensions (2j, 2j+1), as GGUF's llama layout has them; otherwise (j, j + rotated/2).
    """

    inv_freq: tuple[float, ...]
    magnitude: float = 1.0
    interleaved: bool = False


class ModelSpec(Struct, frozen=True):
    """A dense decoder. Field names follow ``config.json`` where it has one for the thing."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    max_positions: int
    """Longest context in tokens that the checkpoint claims, after RoPE scaling."""
    norm_eps: float
    ropes: tuple[Rope, ...]
    """The distinct rotary embeddings; ``layer_rope`` says which one a layer uses."""
    layer_rope: tuple[int, ...]
    layer_window: tuple[int | None, ...]
    """Per layer: None attends to everything before; w attends to the last w positions, its own included."""
    attention_scale: float
    """Multiplies q·k; usually head_dim ** -0.5."""
    norm_offset: float = 0.0
    """RMSNorm multiplies by (norm_offset + weight): 1.0 for Gemma in safetensors, 0.0 elsewhere and in GGUF."""
    post_norms: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k, before RoPE (Qwen 3, Gemma 3)."""
    qkv_bias: bool = False
    o_bias: bool = False
    activation: Activation = Activation.SILU
    embedding_scale: float = 1.0
    tied_embeddings: bool = True
    attention_softcap: float | None = None
    """Gemma 2: scores = cap * tanh(scores / cap)."""
    logit_softcap: float | None = None

    @property
    def parameters(self) -> int:
        """Weights in the linear layers and the embedding (norms and biases left out)."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = self.hidden_size * (2 * q + 2 * kv) + 3 * self.hidden_size * self.ffn_size
        return self.num_layers * layer + self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """KV cache bytes that one token takes over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes


class DType(enum.StrEnum):
    """How a tensor's elements are stored in its file. The quantised ones are GGUF's block formats."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"


BLOCK_LAYOUT: Mapping[DType, tuple[int, int]] = {
    DType.F32: (1, 4),
    DType.F16: (1, 2),
    DType.BF16: (1, 2),
    DType.Q8_0: (32, 34),
    DType.Q4_0: (32, 18),
    DType.Q4_1: (32, 20),
    DType.Q5_0: (32, 22),
    DType.Q5_1: (32, 24),
    DType.Q4_K: (256, 144),
    DType.Q5_K: (256, 176),
    DType.Q6_K: (256, 210),
}
"""(elements, bytes) of one block of each storage type (GGUF specification; ggml-common.h)."""


class Tensor(Struct, frozen=True):
    """A read-only view of one tensor in a memory-mapped file: nothing is copied until a backend packs it.

    ``source`` holds exactly the tensor's bytes, or is a function that makes them anew each time that they are asked
    for, so that none are kept: layouts that no backend knows (AWQ, GPTQ) come as these. It raises `ModelFileError`
    where the file's numbers do not fit ``dtype``. A quantised tensor's rows are whole numbers of blocks.
    """

    dtype: DType
    shape: tuple[int, ...]
    source: memoryview | Callable[[], memoryview]

    @property
    def data(self) -> memoryview:
        """The tensor's bytes. Read it once: they may be computed now."""
        return self.source if isinstance(self.source, memoryview) else self.source()

    @property
    def nbytes(self) -> int:
        """Length of ``data``, without computing it."""
        elements, size = BLOCK_LAYOUT[self.dtype]
        return math.prod(self.shape) // elements * size

    def rows(self, begin: int, end: int) -> Tensor:
        """The rows [begin, end) as a view, or computed later too: fused projections (Phi-3) are split this way."""
        row = self.nbytes // self.shape[0]
        cut, source = slice(begin * row, end * row), self.source
        part = source[cut] if isinstance(source, memoryview) else lambda: self.data[cut]
        return Tensor(self.dtype, (end - begin, *self.shape[1:]), part)


class Checkpoint(Struct, frozen=True):
    """Everything that a model's files say: what to compute, with which weights, and how to speak to it.

    ``text`` is what the ``text`` room builds tokenizer and chat template from; the keys are in
    `headrace.weights.TextSource`. ``name`` is what the model is called when nobody names it.
    """

    name: str
    path: str
    spec: ModelSpec
    tensors: Mapping[str, Tensor]
    text: TextSource


class TextSource(Struct, frozen=True):
    """The tokenizer, template and special-token part of a checkpoint, as plain data.

    Exactly one of ``tokenizer_json`` (the path of a tokenizer.json) and ``gguf`` (the ``tokenizer.*`` metadata of a
    GGUF file, keys with their ``tokenizer.`` prefix kept; arrays of numbers are `array.array`) is set.
    ``chat_templates`` maps a name ("default", "tool_use") to Jinja source. ``eos_token_ids`` unites every source
    (generation_config.json, config.json, GGUF eos/eot/eom). ``sampling_defaults`` are temperature, top_k, top_p,
    min_p, repetition_penalty from generation_config.json.
    """

    tokenizer_json: str | None = None
    gguf: Mapping[str, Any] | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """``bos_token``, ``eos_token``, ``pad_token``, ``unk_token`` by their text, as templates refer to them."""
    add_bos: bool | None = None
    """Whether the tokenizer puts BOS first; None leaves it to tokenizer.json's own post-processor."""
    bos_token_id: int | None = None
    eos_token_ids: frozenset[int] = frozenset()
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
