"""A model's files → its `Card`, when somebody asks."""

from __future__ import annotations

import hashlib
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from headrace.api.cards import Card
from headrace.text.formats.recognition import recognise
from headrace.text.template import ChatTemplate, load_template
from headrace.weights import open_checkpoint
from headrace.weights.spec import Checkpoint, DType


def read_card(path: Path) -> Card:
    """The card of the model at ``path``; its headers are read, the names of its tokens, and its chat template.

    Raises:
        ModelError: it cannot be read any more.
    """
    checkpoint = open_checkpoint(path)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    stats = [each.stat() for each in files]
    listing = "".join(
        f"{each.name} {stat.st_size} {stat.st_mtime_ns}\n" for each, stat in zip(files, stats, strict=True)
    )
    template = checkpoint.text.chat_templates.get("default", "")
    return Card(
        format="gguf" if checkpoint.text.gguf is not None else "safetensors",
        family=checkpoint.spec.architecture,
        parameters=checkpoint.spec.parameters,
        quantization=_stored(checkpoint),
        bytes=sum(stat.st_size for stat in stats),
        digest=hashlib.sha256(listing.encode()).hexdigest(),
        modified=max(stat.st_mtime for stat in stats),
        template=template,
        capabilities=capabilities(load_template(checkpoint.text)),
        info=_info(checkpoint),
    )


def _stored(checkpoint: Checkpoint) -> str:
    """The type that most of the weights have."""
    elements: Counter[DType] = Counter()
    for tensor in checkpoint.tensors.values():
        elements[tensor.dtype] += prod(tensor.shape)
    return elements.most_common(1)[0][0].value if elements else ""


def capabilities(template: ChatTemplate | None) -> tuple[str, ...]:
    """What Ollama calls them, by the format that the template's chats are read in: "tools" if it takes them by itself.

    Raises:
        ModelFileError: it does not compile.
    """
    form = None if template is None else recognise(template)
    tools = ("tools",) if form is not None and form.native else ()
    thinking = ("thinking",) if form is not None and form.reasoning is not None else ()
    return ("completion", *tools, *thinking)


def _info(checkpoint: Checkpoint) -> dict[str, Any]:
    spec = checkpoint.spec
    name = spec.architecture
    return {
        "general.architecture": name,
        "general.parameter_count": spec.parameters,
        f"{name}.attention.head_count": spec.num_heads,
        f"{name}.attention.head_count_kv": spec.num_kv_heads,
        f"{name}.attention.key_length": spec.head_dim,
        f"{name}.block_count": spec.num_layers,
        f"{name}.context_length": spec.max_positions,
        f"{name}.embedding_length": spec.hidden_size,
        f"{name}.feed_forward_length": spec.ffn_size,
        f"{name}.vocab_size": spec.vocab_size,
    }
