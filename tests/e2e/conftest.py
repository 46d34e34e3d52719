"""One server process on the default model, shared by the end-to-end tests that do not stop it."""

from collections.abc import Iterator

import pytest

from tests.e2e.server import ServerProcess, serve


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with serve() as process:
        yield process


@pytest.fixture
def idle_server(server: ServerProcess) -> Iterator[ServerProcess]:
    """The shared server, and the proof that the test left nothing behind in it."""
    yield server
    server.wait_until_idle()
    assert server.process.poll() is None, server.output()
