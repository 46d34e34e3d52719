"""Servers on real sockets, in a thread of the test process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from headrace.api import App, ServerSettings
from headrace.api.desk import Desk
from headrace.api.server import Serving, listen
from tests.api.fakes import FakeEngine, app_of
from tests.api.raw import PATIENCE


@dataclass
class Running:
    """A server that runs."""

    app: App
    engine: FakeEngine
    port: int
    stop: Callable[[float], None]
    """Begin to drain; again: at once."""
    join: Callable[[], None]

    @property
    def desk(self) -> Desk:
        return self.app.models.loaded[0].desk

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers: ``start(engine, settings)``; all are stopped in the end."""
    yield from _starter()


@pytest.fixture(scope="module")
def start_once() -> Iterator[Start]:
    """`start`, for servers that all tests of a file share."""
    yield from _starter()


def _starter() -> Iterator[Start]:
    servers: list[Running] = []

    def starter(engine: FakeEngine, settings: ServerSettings | None = None, **changes: Any) -> Running:
        app = app_of(engine, settings, **changes)
        sock = listen("127.0.0.1", 0)
        loops: list[asyncio.AbstractEventLoop] = []
        started = threading.Event()
        serving = Serving(app, sock)

        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            await serving.run(started.set)

        port = sock.getsockname()[1]
        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        assert started.wait(PATIENCE)

        def stop(lame_duck: float) -> None:
            if thread.is_alive():
                loops[0].call_soon_threadsafe(serving.stop, lame_duck)

        def join() -> None:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server did not stop"

        running = Running(app, engine, port, stop, join)
        servers.append(running)
        return running

    yield starter
    for server in servers:
        server.stop(0)
        server.stop(0)
        server.join()
        server.engine.close()
