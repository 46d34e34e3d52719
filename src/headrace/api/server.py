"""Serving an `App` on a socket, from the first connection to the last byte after SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from headrace.api.app import App
from headrace.api.connection import with_limits
from headrace.api.kept import Config, Server
from headrace.api.lifecycle import Phase, drain
from headrace.errors import ConfigError, Draining

log = logging.getLogger("headrace.api")
_CLOSING = 1
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


class Serving:
    """One app on one socket. `run` serves until `stop` has been called and everything has ended."""

    def __init__(self, app: App, sock: socket.socket) -> None:
        settings = app.settings
        self._app = app
        self._sock = sock
        self._stopping: asyncio.Task[None] | None = None
        self._server = _Server(
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
                timeout_graceful_shutdown=_CLOSING,
            )
        )

    async def run(self, on_started: Callable[[], None] | None = None) -> None:
        """Serve. ``on_started`` is called when connections are being accepted."""
        await self._app.start()
        try:
            if on_started is not None:
                on_started()
            await self._server.serve(sockets=[self._sock])
        finally:
            await self._app.stop()

    def stop(self, lame_duck: float) -> None:
        """Begin to drain; called again, end everything at once. Must be called on the event loop."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._drain(lame_duck))
            return
        log.warning("told to stop a second time: stopping at once")
        self._stopping.cancel()
        self._app.lifecycle.phase = Phase.STOPPED
        self._app.models.shut(Draining("the server was shut down before this request finished"))
        self._server.should_exit = True

    async def _drain(self, lame_duck: float) -> None:
        await drain(self._app.lifecycle, self._app.models, lame_duck, self._app.settings.grace_period)
        self._server.should_exit = True


def serve(app: App, sock: socket.socket, on_started: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; returns when all is done. For the main thread, which gets the signals.

    SIGTERM walks through all phases, SIGINT (a person at a terminal) leaves the lame-duck time out; a second signal
    of either kind ends everything at once.
    """
    import uvloop

    async def run() -> None:
        serving = Serving(app, sock)
        loop = asyncio.get_running_loop()
        # Long texts are tokenised there: two at a time, so that many take neither all processors nor much memory.
        loop.set_default_executor(ThreadPoolExecutor(2, "headrace-text"))
        loop.add_signal_handler(signal.SIGTERM, serving.stop, app.settings.lame_duck)
        if app.settings.api_key_file is not None:  # else a closed terminal ends the server, as ever
            loop.add_signal_handler(signal.SIGHUP, app.keys.refresh)
        loop.add_signal_handler(signal.SIGINT, serving.stop, 0.0)
        await serving.run(on_started)

    uvloop.run(run())
