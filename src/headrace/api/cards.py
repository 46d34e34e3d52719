"""What a model's files say of it, for those who list models; and the shelf that holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Card:
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
    capabilities: tuple[str, ...] = ("completion", "embedding")
    info: Mapping[str, Any] = field(default_factory=dict)
    """Its dimensions, by GGUF's names."""


UNKNOWN = Card()
"""Of a model that nobody has looked at."""


class Shelf(Protocol):
    """The models on this machine's disk. Every method may take long and is called on a thread."""

    def pull(self, name: str, progress: Callable[[int, int], None]) -> str:
        """Fetch a model, unless it is there, and let the server know it; returns its digest or ``""``. ``progress``
        gets (bytes done, bytes in all), and may raise to end it.

        Raises:
            InvalidRequest: the name names nothing.
            DownloadError: it cannot be fetched.
        """
        ...

    def remove(self, name: str) -> None:
        """Delete a model that is not being served.

        Raises:
            ModelNotFound: there is none of that name.
            Conflict: the server was started to serve it.
        """
        ...

    def copy(self, source: str, name: str) -> None:
        """Give a model a second name.

        Raises:
            ModelNotFound: there is no ``source``.
            InvalidRequest: ``name`` is none that a model may have, or taken.
        """
        ...
