"""The models of a server, by name, and a lease on one for as long as a call needs it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from msgspec import Struct

from headrace.api.ports import Receive
from headrace.api.residents import Residents, Seat, on_thread
from headrace.api.settings import PLACEHOLDER_NAMES, ServerSettings
from headrace.api.versions import Hosted, Model, Version
from headrace.errors import Conflict, HeadraceError, ModelFailed, ModelNotFound, QueueFull
from headrace.metrics import Recorder
from headrace.residency import Residency, Resident, State

log = logging.getLogger("headrace.models")
UNLIMITED = 1 << 62


class Slot(Struct, eq=False):
    """One model: the version that calls get."""

    names: tuple[str, ...]
    created: int
    look: Callable[[], Version]
    recorder: Recorder
    seat: Seat
    versions: int = 1
    reloading: bool = False

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.names[0]

    @property
    def max_model_len(self) -> int | None:
        """Tokens of its context: a model in memory knows it, the files of another may not say it yet."""
        loaded = self.seat.loaded
        return self.seat.version.max_model_len if loaded is None else loaded.hosted.served.limits.max_model_len


class Entry(Struct, frozen=True):
    """One name that requests may call a model by. ``root`` is the model's own; ``max_model_len`` is None while nobody
    knows it, and so is ``chat`` while the model is not in memory (see `headrace.api.ports.Words`)."""

    name: str
    root: str
    created: int
    max_model_len: int | None
    chat: Mapping[str, Any] | None = None


def plain_name(name: str) -> str:
    """Names that are one to Ollama's users: in any case, with or without the tag that means none."""
    return name.removesuffix(":latest").casefold()


class Lease:
    """``async with lease as hosted``: as long as it is held, the model stays in memory."""

    __slots__ = ("_deadline", "_receive", "_residents", "_seat", "_slot")

    def __init__(self, residents: Residents, slot: Slot, deadline: float | None, receive: Receive | None) -> None:
        self._residents = residents
        self._slot = slot
        self._deadline = deadline
        self._receive = receive

    async def __aenter__(self) -> Hosted:
        """Wait until the model is there, if it is not."""
        seat = self._slot.seat
        if seat.resident.state is State.READY:
            self._residents.enter(seat)
        else:
            seat = await self._residents.wait(seat, self._deadline, self._receive)
        self._seat = seat
        if seat.loaded is None:
            raise ModelFailed(f"The model `{self._slot.name}` is not in memory.")
        return seat.loaded.hosted

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The call is over."""
        self._residents.leave(self._seat)


class Models:
    """Every model of one server. The first one answers calls that name none. Lives on the event loop.

    ``budget`` is in bytes; None sets no limit.
    """

    def __init__(
        self,
        models: Sequence[Model],
        settings: ServerSettings,
        budget: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self.budget = budget
        self._residents = Residents(Residency(UNLIMITED if budget is None else budget), settings.max_waiting, clock)
        self.slots = tuple(self._slot(model) for model in models)
        self._by_name = {name: slot for slot in self.slots for name in slot.names}
        self._by_plain_name = {plain_name(name): slot for name, slot in self._by_name.items()}
        self._preparing = 0

    def _slot(self, model: Model) -> Slot:
        resident = Resident(model.names[0], model.version.bytes, model.pinned, model.keep_alive)
        seat = Seat(model.version, resident, model.recorder, model.loaded)
        self._residents.add(seat)
        return Slot(model.names, model.created, model.look, model.recorder, seat)

    # ------------------------------------------------------------------------------------------ what there is

    @property
    def open(self) -> int:
        """Calls that are not answered yet, those in preparation and those that wait for a model included."""
        return self._residents.users + self._residents.waiting + self._preparing

    @property
    def loaded(self) -> Sequence[Hosted]:
        """What is in memory, old versions that still have users included."""
        return [seat.loaded.hosted for seat in self._residents.seats if seat.loaded is not None]

    @property
    def recorders(self) -> Sequence[tuple[Recorder, Hosted | None]]:
        """What counts for each model, and the model if it is in memory."""
        return [(slot.recorder, None if slot.seat.loaded is None else slot.seat.loaded.hosted) for slot in self.slots]

    @property
    def entries(self) -> Sequence[Entry]:
        """Every name, in memory or not."""
        return [
            Entry(name, slot.name, slot.created, slot.max_model_len, chat)
            for slot in self.slots
            for chat in (slot.seat.loaded.hosted.served.words.chat_format if slot.seat.loaded else None,)
            for name in slot.names
        ]

    def find(self, asked: str | None) -> Slot:
        """The model that is called ``asked``; the first one if that is None or a name that clients make up.

        Raises:
            ModelNotFound: no model of that name is served.
        """
        if asked is None or asked in PLACEHOLDER_NAMES:
            return self.slots[0]
        found = self._by_name.get(asked) or self._by_plain_name.get(plain_name(asked))
        if found is None:
            raise ModelNotFound(f"The model `{asked}` does not exist.", "model", asked)
        return found

    # --------------------------------------------------------------------------------------------- for calls

    def lease(self, asked: str | None, deadline: float | None = None, receive: Receive | None = None) -> Lease:
        """The model that a call asks for. One that is not in memory is waited for until ``deadline`` (monotonic
        seconds), or until ``receive``, whose body has been read, says that the client has gone.

        Raises:
            ModelNotFound: no model of that name is served.
            ModelBusy, ModelFailed, ClientGone: when the lease is entered (see `Residents.wait`).
        """
        return Lease(self._residents, self.find(asked), deadline, receive)

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

    # ----------------------------------------------------------------------------------- for whoever looks after

    async def load(self, name: str | None, deadline: float | None = None, receive: Receive | None = None) -> None:
        """Bring a model into memory, or find it there; waits as `lease` does.

        Raises:
            ModelNotFound, ModelBusy, ModelFailed, ClientGone.
        """
        self.find(name).seat.failure = None
        async with self.lease(name, deadline, receive):
            pass

    def add(self, model: Model) -> None:
        """Know one more model, which is not in memory. Names that are taken stay what they are."""
        slot = self._slot(model)
        self.slots = (*self.slots, slot)
        for name in slot.names:
            self._by_name.setdefault(name, slot)
            self._by_plain_name.setdefault(plain_name(name), slot)

    def remove(self, name: str) -> None:
        """Know a model no more, unless it is the first. Calls that use it go on; those that wait for it end.

        Raises:
            ModelNotFound: no model of that name is served.
        """
        slot = self.find(name)
        if slot is self.slots[0]:
            return
        self.slots = tuple(each for each in self.slots if each is not slot)
        for table in (self._by_name, self._by_plain_name):
            for key in [key for key, found in table.items() if found is slot]:
                del table[key]
        self._residents.dismiss(slot.seat, ModelNotFound(f"The model `{name}` does not exist.", "model", name))

    def unload(self, name: str | None) -> None:
        """Take a model out of memory as soon as no call uses it, pinned or not. The next call brings it back."""
        self._residents.books.retire(self.find(name).seat.resident)
        self._residents.advance()

    def pinned(self, name: str | None) -> bool:
        """Whether the operator wants the model in memory at all times."""
        return self.find(name).seat.resident.pinned

    def keep_alive(self, name: str | None, seconds: float | None) -> None:
        """How long a model stays after its last use, from now on; None for as long as there is room."""
        self.find(name).seat.resident.keep_alive = seconds
        self._residents.advance()

    async def reload(self, name: str | None) -> None:
        """Look at the model's files again and serve what they are now. Calls go on with the old version until the new
        one is in memory; then the name is the new one's, and the old one leaves with its last call. Only if there is
        no room for both does the old one leave first, and calls wait for the new one.

        Raises:
            Conflict: it is being reloaded already.
            ModelFailed, HeadraceError: the new version cannot be used; the old one goes on.
        """
        slot = self.find(name)
        if slot.reloading:
            raise Conflict(f"The model `{slot.name}` is being reloaded already.")
        slot.reloading = True
        try:
            try:
                version = await on_thread(slot.look)
            except HeadraceError as error:
                log.error("%s: no new version: %s", slot.name, error)
                raise
            old, was = slot.seat, slot.seat.resident
            resident = Resident(f"{slot.name}#{slot.versions}", version.bytes, was.pinned, was.keep_alive)
            seat = Seat(version, resident, slot.recorder, load_seconds=old.load_seconds)
            slot.versions += 1
            self._residents.add(seat)
            if was.state is not State.ABSENT:
                await self._bring(old, seat)
            slot.seat = seat
            self._residents.retire(old, seat)
            log.info("%s: a new version is in use", slot.name)
        finally:
            slot.reloading = False

    async def _bring(self, old: Seat, seat: Seat) -> None:
        """Load a version beside the old one; a pinned one may have to go first."""
        pinned, books = old.resident.pinned, self._residents.books
        try:
            old.resident.pinned = pinned and books.fits(seat.resident)
            self._residents.leave(await self._residents.wait(seat))
        except BaseException:
            old.resident.pinned = pinned
            seat.retired = True
            if seat.resident.state is State.ABSENT:
                self._residents.forget(seat)
            raise

    # ----------------------------------------------------------------------------------- the life of a server

    def start(self) -> None:
        """Start the engines; must be called on the event loop."""
        self._residents.start()

    def stop(self) -> None:
        """Look after nothing any more. What is in memory is for `close`."""
        self._residents.stop()

    def shut(self, error: HeadraceError) -> None:
        """Every open call ends with ``error``, and so does every later one."""
        self._residents.shut(error)

    def close(self) -> None:
        """Stop all engines and give all memory back, after the event loop has ended."""
        self._residents.close()
