"""The models on this machine's disk, as far as clients may change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from headrace.api.versions import Model


class Shelf(Protocol):
    """Every method may take long and is called on a thread."""

    def pull(self, name: str, progress: Callable[[int, int], None]) -> Model | None:
        """Fetch a model, unless it is there; None if it is served already. ``progress`` gets (bytes done, bytes in
        all), and may raise to end it.

        Raises:
            InvalidRequest: the name names nothing, or no model that can be served.
            DownloadError: it cannot be fetched.
        """
        ...

    def remove(self, name: str) -> None:
        """Delete a model that the server was not started to serve.

        Raises:
            ModelNotFound: there is none of that name.
            Conflict: the server was started to serve it.
        """
        ...

    def copy(self, source: str, name: str) -> Model:
        """Give a model a second name.

        Raises:
            ModelNotFound: there is no ``source``.
            InvalidRequest: ``name`` is none that a model may have, or taken.
        """
        ...
