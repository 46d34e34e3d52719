"""The models of a server, by name, and a lease on one for as long as a call needs it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType

from headrace.api.desk import Desk
from headrace.api.ports import EnginePort
from headrace.api.settings import PLACEHOLDER_NAMES, Served, ServerSettings
from headrace.errors import HeadraceError, ModelNotFound, QueueFull
from headrace.metrics import Recorder
from headrace.wire.sampling import usable_defaults

log = logging.getLogger("headrace.api")


@dataclass(frozen=True, slots=True, eq=False)
class Hosted:
    """A model that is in memory: everything that a call needs of it."""

    served: Served
    engine: EnginePort
    desk: Desk
    recorder: Recorder


@dataclass(frozen=True, slots=True)
class Entry:
    """One name that requests may call a model by. ``root`` is the model's own; ``max_model_len`` is None while the
    model has never been in memory."""

    name: str
    root: str
    created: int
    max_model_len: int | None


def host(engine: EnginePort, served: Served, recorder: Recorder, settings: ServerSettings) -> Hosted:
    """A model with a desk of its own, ready for `Models`."""
    usable = usable_defaults(served.sampling_defaults)
    for name in served.sampling_defaults.keys() - usable.keys():
        log.warning("%s: the model's default for %s is not one that a request could have", served.names[0], name)
    return Hosted(replace(served, sampling_defaults=usable), engine, Desk(engine, recorder, settings), recorder)


class Lease:
    """``async with lease as hosted``: as long as it is held, the model stays in memory."""

    __slots__ = ("_hosted", "_models")

    def __init__(self, models: Models, hosted: Hosted) -> None:
        self._models = models
        self._hosted = hosted

    async def __aenter__(self) -> Hosted:
        """Wait until the model is there, if it is not."""
        self._models.leases += 1
        return self._hosted

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The call is over."""
        self._models.leases -= 1


class Models:
    """Every model of one server. The first one answers calls that name none. Lives on the event loop."""

    def __init__(self, hosted: Sequence[Hosted], settings: ServerSettings) -> None:
        self._hosted = tuple(hosted)
        self._by_name = {name: each for each in hosted for name in each.served.names}
        self._settings = settings
        self._preparing = 0
        self.leases = 0
        """Calls that hold a model."""

    @property
    def open(self) -> int:
        """Calls that are not answered yet, those in preparation included."""
        return self.leases + self._preparing

    @property
    def loaded(self) -> Sequence[Hosted]:
        """The models that are in memory."""
        return self._hosted

    @property
    def entries(self) -> Sequence[Entry]:
        """Every name, in memory or not."""
        return [
            Entry(name, each.served.names[0], each.served.created, each.served.limits.max_model_len)
            for each in self._hosted
            for name in each.served.names
        ]

    def lease(self, asked: str | None, deadline: float | None = None) -> Lease:
        """The model that a call asks for; waits for one that is being loaded until ``deadline`` (monotonic seconds).

        Raises:
            ModelNotFound: no model of that name is served.
        """
        if asked is None or asked in PLACEHOLDER_NAMES:
            return Lease(self, self._hosted[0])
        found = self._by_name.get(asked)
        if found is None:
            raise ModelNotFound(f"The model `{asked}` does not exist.", "model")
        return Lease(self, found)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Around the time in which a call's body is read or tokenised; bounds how many do that at once.

        Raises:
            QueueFull: too many.
        """
        limit = self._settings.max_preparing
        if self._preparing >= limit:
            raise QueueFull(f"{limit} requests are being read already; try again in a second")
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1

    def start(self) -> None:
        """Start the engines; must be called on the event loop."""
        for each in self._hosted:
            each.desk.start()

    def stop(self) -> None:
        """Stop looking after replies. Engines are their owners' to stop."""
        for each in self._hosted:
            each.desk.stop()

    def shut(self, error: HeadraceError) -> None:
        """Every open call ends with ``error``, and so does every later one."""
        for each in self._hosted:
            each.desk.shut(error)
