"""The phases of a start and how long each took: for the log, for /metrics, and for whoever asks why it is slow."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

log = logging.getLogger("headrace.start")


class Phases:
    """Seconds by phase, in order. Phases on other threads overlap, so that the sum may be more than the whole."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase, and log it when it has succeeded."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin
        log.debug("%s: %.3f s", name, self.seconds[name])

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._begin

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.seconds.items())
