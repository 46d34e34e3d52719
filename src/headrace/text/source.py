"""What this room needs of a checkpoint: the shape of `headrace.weights.spec.TextSource`, which it may not import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class TextSource(Protocol):
    """The tokenizer, template and special-token part of a checkpoint. Exactly one of the first two is set."""

    @property
    def tokenizer_json(self) -> str | None:
        """Path of a tokenizer.json."""

    @property
    def gguf(self) -> Mapping[str, Any] | None:
        """The ``tokenizer.*`` metadata of a GGUF file."""

    @property
    def add_bos(self) -> bool | None:
        """Whether BOS goes first; None leaves it to the tokenizer.json or to the GGUF kind's default."""

    @property
    def bos_token_id(self) -> int | None:
        """The BOS token."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """All tokens that end a text."""

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Jinja sources by name: "default", "tool_use"."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """``bos_token`` and the like, as templates refer to them."""
