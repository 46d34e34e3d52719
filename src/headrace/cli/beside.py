"""Work on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """Does ``work`` while the caller does something else; ``failed`` is called there if it raises."""

    def __init__(self, work: Callable[[], T], failed: Callable[[], None] = lambda: None) -> None:
        self._work, self._failed = work, failed
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._work())
        except BaseException as error:  # raised again where the result is asked for
            self._error = error
            self._failed()

    def result(self) -> T:
        """Wait for it; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found[0]
