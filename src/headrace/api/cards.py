"""What a model's files say of it, for those who list models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field


class Card(Struct, frozen=True):
    """One model, loaded or not."""

    format: str = ""
    """How its files are written: gguf, safetensors."""
    family: str = ""
    """Its architecture."""
    parameters: int = 0
    quantization: str = ""
    """How most of its weights are stored."""
    bytes: int = 0
    """On disk."""
    digest: str = ""
    """SHA-256 of the list of its files with their sizes and times: another one when they change."""
    modified: float = 0.0
    """Seconds since the epoch."""
    template: str = ""
    """Its chat template, empty if it has none."""
    capabilities: tuple[str, ...] = ("completion",)
    """In Ollama's words. "embedding" means there that a model does nothing else."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Its dimensions, by GGUF's names."""


def unknown() -> Card:
    """The card of a model that nobody has looked at."""
    return Card()
