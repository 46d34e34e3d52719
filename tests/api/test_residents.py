"""Models that come and go under calls: fake engines, real leases, a budget for one or two of them."""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from headrace.api import App, Loaded, Model, Models, ServerSettings, Version, host
from headrace.api.exchange import ClientGone
from headrace.api.hosting import Slot
from headrace.errors import Conflict, Draining, ModelBusy, ModelFailed, ModelFileError, ModelNotFound
from headrace.metrics import Recorder
from headrace.residency import State
from tests.api.fakes import FakeEngine, served

SETTINGS = ServerSettings(max_waiting=3)


@dataclass
class Disk:
    """One model's files: loading takes until ``ready`` is set, and does what it is told."""

    name: str
    size: int = 10
    ready: threading.Event = field(default_factory=threading.Event)
    broken: bool = False
    loads: int = 0
    closed: int = 0
    engines: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ready.set()
        self.recorder = Recorder(self.name, 512)

    def look(self) -> Version:
        if self.broken:
            raise ModelFileError(f"/secret/path/{self.name}: broken")
        return Version(self.size, self.load, 512)

    def load(self) -> Loaded:
        self.ready.wait(10)
        self.loads += 1
        if self.broken:
            raise ModelFileError(f"/secret/path/{self.name}: broken")
        engine = FakeEngine()
        self.engines.append(weakref.ref(engine))
        hosted = host(engine, served(names=(self.name,)), self.recorder, SETTINGS)

        def close() -> None:
            self.closed += 1
            engine._listener = lambda events: None  # as a real engine forgets it

        return Loaded(hosted, self.size, close)

    def model(self, *, pinned: bool = False, keep_alive: float | None = None) -> Model:
        version = Version(self.size, self.load, 512)
        return Model((self.name,), 0, version, self.look, self.recorder, None, pinned, keep_alive)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def models_of(*models: Model, budget: int | None = None) -> Models:
    made = Models(models, SETTINGS, budget)
    made.start()
    return made


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def never() -> Any:
    await asyncio.Event().wait()


async def hold(models: Models, name: str, release: asyncio.Event, deadline: float | None = None) -> str:
    async with models.lease(name, deadline, never) as hosted:
        await release.wait()
        return hosted.served.names[0]


def state(slot: Slot) -> State:
    return slot.seat.resident.state


def test_many_wait_for_one_load_and_a_model_in_use_stays() -> None:
    async def test() -> None:
        a, b = Disk("a"), Disk("b")
        models, release = models_of(a.model(), b.model(), budget=10), asyncio.Event()
        calls = [asyncio.create_task(hold(models, "a", release)) for _ in range(3)]
        await until(lambda: models.slots[0].seat.resident.users == 3)
        assert (a.loads, models.open) == (1, 3)
        other = asyncio.create_task(hold(models, "b", release))
        await asyncio.sleep(0.05)
        assert (state(models.slots[0]), b.loads, a.closed) == (State.READY, 0, 0)
        release.set()
        assert await asyncio.gather(*calls, other) == ["a", "a", "a", "b"]
        assert (a.closed, b.loads, models.open) == (1, 1, 0)
        assert a.recorder.counters["headrace:model_unloads", ""] == 1
        assert a.recorder.gauges["headrace:model_loaded", ""] == 0
        assert a.engines[0]() is None, "nothing holds on to what was unloaded"
        with pytest.raises(ModelNotFound):
            models.lease("c")

    run(test)


def test_who_waits_may_give_up_be_told_to_wait_or_leave() -> None:
    async def test() -> None:
        a = Disk("a")
        a.ready.clear()
        models, release = models_of(a.model()), asyncio.Event()
        release.set()
        with pytest.raises(ModelBusy, match="not in memory in time"):
            await hold(models, "a", release, time.monotonic() + 0.05)

        async def gone() -> Any:
            return {"type": "http.disconnect"}

        with pytest.raises(ClientGone):
            async with models.lease("a", None, gone):
                pass
        waiting = [asyncio.create_task(hold(models, "a", release)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert models.open == 3
        with pytest.raises(ModelBusy, match="3 requests wait"):
            await hold(models, "a", release)
        waiting[0].cancel()
        a.ready.set()
        assert await asyncio.gather(*waiting[1:]) == ["a", "a"]
        assert (models.open, models.slots[0].seat.resident.users, a.loads) == (0, 0, 1)

    run(test)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_a_calls_own_timeout_bounds_its_waiting_for_the_model(path: str) -> None:
    async def test() -> None:
        a = Disk("a")
        a.ready.clear()
        models = models_of(a.model())
        app = App(models, a.recorder, SETTINGS)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            answer = await client.post(path, json={"prompt": "x", "input": "x", "timeout": 0.05})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "not in memory in time" in answer.text
            wrong = await client.post(path, json={"prompt": "x", "input": "x", "timeout": "soon"})
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "timeout"), "it is told at once"
        a.ready.set()
        await until(lambda: state(models.slots[0]) is State.READY)

    run(test)


def test_a_failure_is_told_to_all_who_wait_and_tried_again_later() -> None:
    async def test() -> None:
        a, b = Disk("a", broken=True), Disk("b")
        models, release = models_of(a.model(), b.model(), budget=15), asyncio.Event()
        release.set()
        calls = [asyncio.create_task(hold(models, "a", release)) for _ in range(3)]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, ModelFailed)
            assert str(result) == "The model `a` could not be loaded."
        assert await hold(models, "b", release) == "b"
        with pytest.raises(ModelFailed):
            await hold(models, "a", release)
        assert a.loads == 1, "who asks again at once is told at once"
        a.broken = False
        await models.load("a")
        assert await hold(models, "a", release) == "a"
        assert a.recorder.counters["headrace:model_load_failures", ""] == 1

    run(test)


def test_what_cannot_fit_is_said_at_once() -> None:
    async def test() -> None:
        a, b = Disk("a", 10), Disk("b", 10)
        models, release = models_of(a.model(pinned=True), b.model(), budget=15), asyncio.Event()
        release.set()
        await models.load("a")
        with pytest.raises(ModelFailed, match="does not fit"):
            await hold(models, "b", release)

    run(test)


def test_keep_alive_and_unload() -> None:
    async def test() -> None:
        a, release = Disk("a"), asyncio.Event()
        models = models_of(a.model(keep_alive=0.05))
        call = asyncio.create_task(hold(models, "a", release))
        await until(lambda: models.open == 1 and a.loads == 1)
        await asyncio.sleep(0.15)
        assert a.closed == 0, "in use"
        release.set()
        await call
        await until(lambda: a.closed == 1)
        models.keep_alive("a", None)
        await models.load("a")
        await asyncio.sleep(0.15)
        assert a.closed == 1
        models.unload("a")
        await until(lambda: a.closed == 2)
        assert await hold(models, "a", release) == "a", "it comes back when asked for"

    run(test)


def test_a_new_version_takes_the_name_and_the_old_one_keeps_its_calls() -> None:
    async def test() -> None:
        a, release = Disk("a"), asyncio.Event()
        models = models_of(a.model(pinned=True), budget=25)
        await models.load("a")
        old = asyncio.create_task(hold(models, "a", release))
        await until(lambda: models.open == 1)
        a.ready.clear()
        reload = asyncio.create_task(models.reload("a"))
        await asyncio.sleep(0.05)
        during = asyncio.create_task(hold(models, "a", release))
        await until(lambda: models.open == 2)
        with pytest.raises(Conflict):
            await models.reload("a")
        a.ready.set()
        await reload
        assert (a.loads, a.closed, len(models.loaded)) == (2, 0, 2)
        release.set()
        assert list(await asyncio.gather(old, during)) == ["a", "a"]
        await until(lambda: a.closed == 1)
        assert len(models.loaded) == 1
        assert models.slots[0].seat.resident.pinned
        assert await hold(models, "a", release) == "a"
        assert a.loads == 2

    run(test)


def test_without_room_for_both_the_old_version_goes_first() -> None:
    async def test() -> None:
        a, release = Disk("a"), asyncio.Event()
        models = models_of(a.model(pinned=True), budget=15)
        release.set()
        assert await hold(models, "a", release) == "a"
        await models.reload("a")
        assert (a.loads, a.closed, len(models.loaded)) == (2, 1, 1)
        assert await hold(models, "a", release) == "a"
        assert models.slots[0].seat.resident.pinned

    run(test)


def test_a_broken_new_version_changes_nothing() -> None:
    async def test() -> None:
        a, release = Disk("a"), asyncio.Event()
        models = models_of(a.model(), budget=25)
        release.set()
        await models.load("a")
        seat = models.slots[0].seat
        a.broken = True
        with pytest.raises(ModelFileError):
            await models.reload("a")
        look = a.look
        a.broken = False
        version = look()
        a.broken = True
        models.slots[0].look = lambda: version
        with pytest.raises(ModelFailed):
            await models.reload("a")
        assert models.slots[0].seat is seat
        assert (await hold(models, "a", release), a.closed, len(models.loaded)) == ("a", 0, 1)

    run(test)


def test_the_end_of_the_server_is_told_to_who_waits_and_a_late_load_is_closed() -> None:
    async def test() -> None:
        a, release = Disk("a"), asyncio.Event()
        a.ready.clear()
        models = models_of(a.model())
        call = asyncio.create_task(hold(models, "a", release))
        await until(lambda: models.open == 1)
        models.shut(Draining("over"))
        with pytest.raises(Draining):
            await call
        with pytest.raises(Draining):
            await hold(models, "a", release)
        models.stop()
        a.ready.set()
        await until(lambda: a.closed == 1)
        models.close()
        assert models.open == 0

    run(test)
