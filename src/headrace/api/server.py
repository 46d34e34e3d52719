"""Serving an `App` on a socket, from the first connection to the last byte after SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from uvicorn import Config, Server

from headrace.api.app import App
from headrace.api.connection import with_limits
from headrace.api.lifecycle import Phase, drain
from headrace.errors import ConfigError, Draining

log = logging.getLogger("headrace.api")
_CLOSING = 1.0
"""Seconds for the last bytes to leave after every call has ended."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        ConfigError: the address is taken, or not this machine's.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, proto)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from None
    found.setblocking(False)
    return found


class _Server(Server):
    """uvicorn's server without its signal handlers, which would cut streams."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled in `serve`."""
        yield


def serve(app: App, sock: socket.socket, on_started: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; returns when all is done.

    SIGTERM walks through all phases, SIGINT (a person at a terminal) leaves the lame-duck time out; a second signal
    of either kind ends everything at once.
    """
    import uvloop

    uvloop.run(_serve(app, sock, on_started))


async def _serve(app: App, sock: socket.socket, on_started: Callable[[], None] | None) -> None:
    settings = app.settings
    server = _Server(
        Config(
            app,
            http=with_limits(settings.max_head_bytes, settings.head_timeout),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(settings.keep_alive),
            timeout_graceful_shutdown=int(_CLOSING),
        )
    )
    stopping: asyncio.Task[None] | None = None

    async def stop(lame_duck: float) -> None:
        await drain(app.lifecycle, app.desk, lame_duck, settings.grace_period)
        server.should_exit = True

    def on_signal(number: signal.Signals) -> None:
        nonlocal stopping
        if stopping is None:
            stopping = asyncio.create_task(stop(settings.lame_duck if number is signal.SIGTERM else 0.0))
            return
        log.warning("second signal: stopping at once")
        app.lifecycle.phase = Phase.STOPPED
        stopping.cancel()
        app.desk.fail_all(Draining("the server was shut down before this request finished"))
        server.should_exit = True

    loop = asyncio.get_running_loop()
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python delivers no signals
    for number in (signal.SIGTERM, signal.SIGINT) if in_main else ():
        loop.add_signal_handler(number, on_signal, number)
    await app.start()
    try:
        if on_started is not None:
            on_started()
        await server.serve(sockets=[sock])
    finally:
        await app.stop()
