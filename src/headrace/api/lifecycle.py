"""From ready to stopped, as a table of phases; and what a signal makes of them.

::

    READY ──SIGTERM──▶ LAME_DUCK ──lame_duck s──▶ DRAINING ──idle, or grace_period s──▶ STOPPED
      │                                              ▲                                      ▲
      └──────────────────SIGINT──────────────────────┘          any second signal ──────────┘

Not ready from LAME_DUCK on, so that load balancers look elsewhere, and still serving until DRAINING, so that nobody
notices who has not looked yet. Liveness has nothing to do with it.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Callable
from typing import Protocol

from headrace.errors import Draining, HeadraceError

log = logging.getLogger("headrace.api")


class Phase(enum.Enum):
    """Where the server is in its life."""

    READY = "ready"
    LAME_DUCK = "lame_duck"
    DRAINING = "draining"
    STOPPED = "stopped"


class Lifecycle:
    """Only ever moves forward through its phases."""

    def __init__(self) -> None:
        self.phase = Phase.READY

    @property
    def ready(self) -> bool:
        """Whether load balancers should send requests."""
        return self.phase is Phase.READY

    @property
    def admitting(self) -> bool:
        """Whether requests that come anyway are taken."""
        return self.phase in (Phase.READY, Phase.LAME_DUCK)


class Work(Protocol):
    """What is waited for: a desk's replies, or those of all models."""

    @property
    def open(self) -> int:
        """Calls that are not answered yet."""
        ...

    def shut(self, error: HeadraceError) -> None:
        """Every open call ends with ``error``."""
        ...


async def drain(
    lifecycle: Lifecycle,
    work: Work,
    lame_duck: float,
    grace_period: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: float = 0.02,
) -> None:
    """Walk through the phases to STOPPED. Times are seconds. What does not finish in time ends with an error."""
    lifecycle.phase = Phase.LAME_DUCK
    log.info("stopping: not ready any more, serving for another %.1f s, %d open", lame_duck, work.open)
    if lame_duck > 0:
        await asyncio.sleep(lame_duck)
    lifecycle.phase = Phase.DRAINING
    give_up = clock() + grace_period
    while work.open and clock() < give_up:
        await asyncio.sleep(pause)
    if work.open:
        log.warning("stopping: %d requests did not finish within %.1f s and are ended", work.open, grace_period)
        work.shut(Draining("the server was shut down before this request finished"))
    lifecycle.phase = Phase.STOPPED
    log.info("stopped")
