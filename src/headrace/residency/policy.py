"""Which models are in memory, decided under a budget.

A model that is asked for and absent waits in a queue, first come, first loaded. Room is made for it by models that
nobody uses, the longest unused first; pinned ones stay. A model in use is never taken from its users: but one that
others have waited for longer than ``patience`` takes no new users until they have had their turn, so that two busy
models that do not fit together take turns instead of one starving the other.

The owner tells what happens (`ask`, `acquire`, `release`, `loaded`, `failed`, `unloaded`) and then carries out what
`decide` answers. Times are seconds of any monotonic clock; sizes are bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from msgspec import Struct, field


class State(enum.StrEnum):
    """Where a model is. It holds its bytes of the budget in all states but the first."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    LEAVING = "leaving"
    """It takes no new users, and goes when it has none."""
    UNLOADING = "unloading"


class Resident(Struct, eq=False):
    """One version of one model, in memory or not."""

    id: str
    bytes: int
    """What loading it may take, or what it takes."""
    pinned: bool = False
    keep_alive: float | None = None
    """Seconds that it stays after its last use; None for as long as there is room."""
    state: State = State.ABSENT
    users: int = 0
    waiting: int = 0
    """Who wait for it to be loaded."""
    asked: float = 0.0
    """When the oldest of those came."""
    used: float = 0.0
    """When it was last given to a user, or given back."""
    since: float = 0.0
    """When it was loaded."""

    @property
    def idle(self) -> bool:
        """In memory, and nobody uses it."""
        return self.state is State.READY and not self.users

    @property
    def expires(self) -> float | None:
        """When it will have been idle for too long; None for never, or while it is not idle."""
        return None if self.pinned or self.keep_alive is None or not self.idle else self.used + self.keep_alive


class Load(Struct, frozen=True):
    """Load this model now; it may take its ``bytes``."""

    resident: Resident


class Unload(Struct, frozen=True):
    """Take this model out of memory now; nobody uses it."""

    resident: Resident


class Residency(Struct):
    """The books of one server. ``patience`` is how long who waits lets a busy model go on taking users."""

    budget: int
    patience: float = 5.0
    residents: list[Resident] = field(default_factory=list)

    @property
    def free(self) -> int:
        """Bytes of the budget that no model holds."""
        return self.budget - sum(each.bytes for each in self.residents if each.state is not State.ABSENT)

    def fits(self, resident: Resident) -> bool:
        """Whether there could ever be room for it: beside the pinned models, with all others gone."""
        pinned = sum(each.bytes for each in self.residents if each.pinned and each is not resident)
        return pinned + resident.bytes <= self.budget

    # ------------------------------------------------------------------------------------------- what happens

    def ask(self, resident: Resident, now: float) -> None:
        """Somebody waits for it to be loaded."""
        if not resident.waiting:
            resident.asked = now
        resident.waiting += 1

    def give_up(self, resident: Resident) -> None:
        """Somebody waits no longer."""
        resident.waiting -= 1

    def acquire(self, resident: Resident, now: float) -> None:
        """It has one more user."""
        resident.users += 1
        resident.used = now

    def release(self, resident: Resident, now: float) -> None:
        """It has one user less."""
        resident.users -= 1
        resident.used = now

    def loaded(self, resident: Resident, size: int, now: float) -> None:
        """It is in memory and takes ``size``."""
        resident.state, resident.bytes = State.READY, size
        resident.used = resident.since = now

    def failed(self, resident: Resident) -> None:
        """It could not be loaded; who waited has been told."""
        resident.state, resident.waiting = State.ABSENT, 0

    def retire(self, resident: Resident) -> None:
        """It is to go as soon as nobody uses it, pinned or not."""
        if resident.state is State.READY:
            resident.state = State.LEAVING

    def unloaded(self, resident: Resident) -> None:
        """Its memory is free."""
        resident.state = State.ABSENT

    # -------------------------------------------------------------------------------------------- what to do

    def decide(self, now: float) -> list[Load | Unload]:
        """What is to be done now. The states say that it is being done."""
        for each in self.residents:
            if each.expires is not None and each.expires <= now:
                each.state = State.LEAVING
        actions: list[Load | Unload] = []
        for each in self._queue():
            if each.bytes > self.free:
                self._make_room(each, now)
                break  # nobody overtakes: a small model that always fits must not starve a large one
            each.state = State.LOADING
            actions.append(Load(each))
        for each in self.residents:
            if each.state is State.LEAVING and not each.users:
                each.state = State.UNLOADING
                actions.append(Unload(each))
        return actions

    def wake_at(self, now: float) -> float | None:
        """When, after ``now``, `decide` may have something to do although nothing happened."""
        times = [each.expires for each in self.residents if each.expires is not None]
        queue = self._queue()
        if queue and queue[0].bytes > self.free:
            times.append(queue[0].asked + self.patience)
        return min((each for each in times if each > now), default=None)

    def _queue(self) -> list[Resident]:
        wanted = [each for each in self.residents if each.state is State.ABSENT and each.waiting]
        return sorted(wanted, key=lambda each: each.asked)

    def _make_room(self, wanted: Resident, now: float) -> None:
        """Send away as few models as need be, if that would be enough."""
        going = sum(each.bytes for each in self.residents if each.state in (State.LEAVING, State.UNLOADING))
        missing = wanted.bytes - self.free - going
        if missing <= 0:
            return
        ready = [each for each in self.residents if each.state is State.READY and not each.pinned]
        idle = sorted((each for each in ready if not each.users), key=lambda each: each.used)
        busy = sorted((each for each in ready if each.users), key=lambda each: each.since)
        chosen = _enough(missing, idle)
        if not chosen and now >= wanted.asked + self.patience:
            chosen = _enough(missing, (*idle, *busy))
        for each in chosen:
            each.state = State.LEAVING


def _enough(missing: int, candidates: Iterable[Resident]) -> list[Resident]:
    """The first candidates that together have ``missing`` bytes, without those that are not needed for it after all;
    empty if all of them are not enough."""
    chosen: list[Resident] = []
    for each in candidates:
        if missing <= 0:
            break
        chosen.append(each)
        missing -= each.bytes
    if missing > 0:
        return []
    spare = -missing
    for each in list(chosen):
        if each.bytes <= spare:
            chosen.remove(each)
            spare -= each.bytes
    return chosen
