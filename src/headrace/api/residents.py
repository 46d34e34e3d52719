"""The threads that carry out what `headrace.residency` decides, and the calls that wait for them.

::

    wait ──▶ Residency.decide ──▶ a thread loads, another unloads ──▶ everyone who waited goes on
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct, field

from headrace.api.exchange import ClientGone
from headrace.api.ports import Receive
from headrace.api.versions import Loaded, Version
from headrace.errors import Draining, HeadraceError, ModelBusy, ModelFailed
from headrace.metrics import Recorder
from headrace.residency import Load, Residency, Resident, State

log = logging.getLogger("headrace.models")
T = TypeVar("T")
FAILURE_HOLDS = 5.0
"""Seconds for which a model that could not be loaded is not tried again: whoever asks for it is told at once."""


class Seat(Struct, eq=False):
    """One version of a model, in memory or not."""

    version: Version
    resident: Resident
    recorder: Recorder
    loaded: Loaded | None = None
    retired: bool = False
    """A newer version has its name: it is forgotten as soon as it is out of memory."""
    waiters: list[asyncio.Future[Seat]] = field(default_factory=list)
    failure: HeadraceError | None = None
    failed_at: float = 0.0
    load_seconds: float = 1.0
    """How long loading it took."""


class Residents:
    """All versions that are in memory or may be. Lives on the event loop; loading and unloading have threads."""

    def __init__(self, books: Residency, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.seats: list[Seat] = []
        self.users = 0
        """Calls that hold a model."""
        self.shut_by: HeadraceError | None = None
        self.books = books
        self._max_waiting = max_waiting
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Calls that wait for a model to be loaded; whoever is served or told of a failure waits no longer."""
        return sum(len(seat.waiters) for seat in self.seats)

    def add(self, seat: Seat) -> None:
        """Know of a version."""
        self.seats.append(seat)
        self.books.residents.append(seat.resident)
        if seat.loaded is not None:
            self.books.loaded(seat.resident, seat.loaded.bytes, self._clock())
        seat.recorder.set("headrace:model_loaded", int(seat.loaded is not None))

    def retire(self, seat: Seat, heir: Seat) -> None:
        """Whoever waits for ``seat`` gets ``heir``, and ``seat`` is forgotten when its last user has gone."""
        waiters, seat.waiters = seat.waiters, []
        for future in waiters:
            self.books.give_up(seat.resident)
            self.books.ask(heir.resident, self._clock())
            heir.waiters.append(future)
        if heir.loaded is not None:
            self._serve_waiters(heir)
        seat.retired = True
        self.books.retire(seat.resident)
        if seat.resident.state is State.ABSENT:
            self.forget(seat)
        self.advance()

    def dismiss(self, seat: Seat, error: HeadraceError) -> None:
        """Whoever waits for ``seat`` is told ``error``, and it is forgotten when its last user has gone."""
        self._tell(seat, error)
        seat.retired = True
        self.books.retire(seat.resident)
        if seat.resident.state is State.ABSENT:
            self.forget(seat)
        self.advance()

    def forget(self, seat: Seat) -> None:
        """Know nothing of a version that is not in memory."""
        self.seats.remove(seat)
        self.books.residents.remove(seat.resident)

    # --------------------------------------------------------------------------------------------- for calls

    def enter(self, seat: Seat) -> None:
        """One more call uses it, which is in memory."""
        self.users += 1
        self.books.acquire(seat.resident, self._clock())

    def leave(self, seat: Seat) -> None:
        """One call less does."""
        self.users -= 1
        resident = seat.resident
        self.books.release(resident, self._clock())
        if not resident.users and (self.waiting or resident.keep_alive is not None or resident.state is State.LEAVING):
            self.advance()

    async def wait(self, seat: Seat, deadline: float | None = None, receive: Receive | None = None) -> Seat:
        """Wait until it is in memory, and enter it. A newer version may have taken its place by then: enters that.

        Raises:
            ModelBusy: ``deadline`` passed, or too many wait.
            ModelFailed: it cannot be loaded.
            ClientGone: ``receive``, whose body has been read, says that the client left.
        """
        self._refuse_hopeless(seat)
        future: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        seat.waiters.append(future)
        self.books.ask(seat.resident, self._clock())
        ends: set[asyncio.Future[Any]] = {future}
        if receive is not None:
            ends.add(asyncio.create_task(_until_gone(receive)))
        try:
            self.advance()
            timeout = None if deadline is None else max(deadline - self._clock(), 0.0)
            done, _ = await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if future in done:
                return future.result()
            if done:
                raise ClientGone
            raise ModelBusy(f"The model `{seat.resident.id}` was not in memory in time.", seat.load_seconds)
        except BaseException:
            self._give_up(future)
            raise
        finally:
            for end in ends:
                end.cancel()

    def _refuse_hopeless(self, seat: Seat) -> None:
        if self.shut_by is not None:
            raise self.shut_by
        if seat.failure is not None and self._clock() < seat.failed_at + FAILURE_HOLDS:
            raise seat.failure
        if not self.books.fits(seat.resident):
            raise ModelFailed(f"The model `{seat.resident.id}` does not fit into the memory beside the pinned models.")
        if self.waiting >= self._max_waiting:
            raise ModelBusy(f"{self.waiting} requests wait for models to be loaded already.", seat.load_seconds)

    def _give_up(self, future: asyncio.Future[Seat]) -> None:
        """Somebody waits no longer; what came at the same moment is given back."""
        for seat in self.seats:
            if future in seat.waiters:
                seat.waiters.remove(future)
                self.books.give_up(seat.resident)
        if future.done() and not future.cancelled() and future.exception() is None:
            self.leave(future.result())

    def _serve_waiters(self, seat: Seat) -> None:
        """They hold it from this moment on, whenever they may come to run."""
        waiters, seat.waiters = seat.waiters, []
        for future in waiters:
            self.books.give_up(seat.resident)
            if not future.done():
                self.enter(seat)
                future.set_result(seat)

    # ----------------------------------------------------------------------------------- the life of a server

    def start(self) -> None:
        """Start the engines; must be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        for seat in self.seats:
            if seat.loaded is not None:
                seat.loaded.hosted.desk.start()
        self.advance()

    def stop(self) -> None:
        """Look after nothing any more. What is in memory is for `close`."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
        for seat in self.seats:
            if seat.loaded is not None:
                seat.loaded.hosted.desk.stop()

    def shut(self, error: HeadraceError) -> None:
        """Every open call ends with ``error``, and so does every later one."""
        self.shut_by = error
        for seat in self.seats:
            if seat.loaded is not None:
                seat.loaded.hosted.desk.shut(error)
            self._tell(seat, error)

    def close(self) -> None:
        """Stop all engines and give all memory back, after the event loop has ended."""
        for seat in self.seats:
            loaded, seat.loaded = seat.loaded, None
            if loaded is not None:
                loaded.close()

    # --------------------------------------------------------------------------------------- loads and unloads

    def advance(self) -> None:
        """Carry out what is decided, and come back when more may be."""
        if self._loop is None:
            return
        now = self._clock()
        for action in self.books.decide(now):
            seat = next(each for each in self.seats if each.resident is action.resident)
            task = self._loop.create_task(self._load(seat) if isinstance(action, Load) else self._unload(seat))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._timer is not None:
            self._timer.cancel()
        wake = self.books.wake_at(now)
        self._timer = None if wake is None else self._loop.call_later(wake - now, self.advance)

    async def _load(self, seat: Seat) -> None:
        began = self._clock()
        log.info("%s: loading", seat.resident.id)
        try:
            loaded = await on_thread(seat.version.load)
        except Exception as error:
            self._failed(seat, error)
            return
        if self._loop is None or self.shut_by is not None:
            loaded.close()
            self._failed(seat, self.shut_by or Draining("the server is shutting down"))
            return
        seat.loaded, seat.failure, seat.load_seconds = loaded, None, self._clock() - began
        loaded.hosted.desk.start()
        seat.recorder.on_model_loaded(seat.load_seconds)
        log.info("%s: in memory after %.2f s", seat.resident.id, seat.load_seconds)
        self.books.loaded(seat.resident, loaded.bytes, self._clock())
        self._serve_waiters(seat)
        if seat.retired:
            self.books.retire(seat.resident)
        self.advance()

    def _failed(self, seat: Seat, error: Exception) -> None:
        """The server goes on; whoever waited is told, and the log says all."""
        if isinstance(error, HeadraceError):
            log.error("%s: cannot be loaded: %s", seat.resident.id, error)
        else:
            log.error("%s: cannot be loaded", seat.resident.id, exc_info=error)
        seat.recorder.count("headrace:model_load_failures")
        seat.failure, seat.failed_at = _failure(seat.resident.id, error), self._clock()
        self.books.failed(seat.resident)
        self._tell(seat, seat.failure)
        if seat.retired:
            self.forget(seat)
        self.advance()

    def _tell(self, seat: Seat, error: HeadraceError) -> None:
        waiters, seat.waiters = seat.waiters, []
        seat.resident.waiting = 0
        for future in waiters:
            if not future.done():
                future.set_exception(error)

    async def _unload(self, seat: Seat) -> None:
        loaded, seat.loaded = seat.loaded, None
        if loaded is None:
            return
        loaded.hosted.desk.stop()
        try:
            await on_thread(loaded.close)
        except Exception:  # its memory stays taken, and the books say so
            log.exception("%s: cannot be unloaded", seat.resident.id)
            return
        del loaded
        log.info("%s: out of memory", seat.resident.id)
        self.books.unloaded(seat.resident)
        if seat.retired:
            self.forget(seat)
        else:
            seat.recorder.on_model_unloaded()
        self.advance()


def _failure(name: str, error: Exception) -> HeadraceError:
    """What callers are told: nothing of files and places."""
    return error if isinstance(error, Draining) else ModelFailed(f"The model `{name}` could not be loaded.")


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def on_thread(work: Callable[[], T]) -> T:
    """``work()`` on a thread of its own, which holds up neither the loop nor the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def run() -> None:
        try:
            found, error = work(), None
        except BaseException as raised:  # raised again where the result is waited for
            found, error = None, raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(
                settle, future.set_result if error is None else future.set_exception, error or found
            )

    threading.Thread(target=run, name="headrace-models", daemon=True).start()
    return await future
