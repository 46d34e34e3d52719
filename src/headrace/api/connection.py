"""uvicorn's HTTP/1.1 connection with the limits that it lacks: size and time of a request's head."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from headrace.api.kept import HttpToolsProtocol, RequestResponseCycle
from headrace.wire.chunks import to_json
from headrace.wire.failures import error_json

_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class Refused(Exception):  # raised inside the parser, which tells by it to stop
    """A limit was exceeded; the connection knows which."""


class Connection(HttpToolsProtocol):
    """One client's connection. A subclass made by `with_limits` carries the limits.

    A head that is too large or too slow to arrive is refused and the connection closed, before any application runs.
    Exchanges can cut the connection through the ASGI extension ``headrace.disconnect``, and go on with a chunked
    response without ASGI's ``send``, through ``headrace.write`` (see `write_chunk`).
    """

    max_head_bytes = 32 << 10
    head_timeout = 15.0
    max_pieces = 1 << 16
    """Pieces of a body. Each costs as much work as a large one: a million one-byte chunks are an attack."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client connected: its first request must begin soon."""
        super().connection_made(transport)
        self._in_head = True
        self._pieces = 0
        self._heads = 0  # that have ended
        self._head_bytes = 0  # of reads in which no head ended
        self._parsed_head_bytes = 0
        self._refusal = (400, "this is not a valid HTTP/1.1 request")
        self._head_timer: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head count against its limit, until its end has been seen."""
        if self._in_head and self._head_timer is None:
            self._expect_head()
        began_in_head, heads = self._in_head, self._heads
        super().data_received(data)
        if not (began_in_head and self._in_head) or self._heads != heads:
            return  # some of the read was not head; what of it was is counted by the parser's callbacks
        self._head_bytes += len(data)
        if self._head_bytes > self.max_head_bytes and not self.transport.is_closing():
            self._refuse(431, "the request's headers are too large")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        self._parsed_head_bytes = 0
        self._extensions: dict[str, Any] = {"headrace.disconnect": self.transport.abort}
        self.scope["extensions"] = self._extensions

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has arrived; from here on the application has its own limits."""
        self._in_head = False
        self._pieces = 0
        self._heads += 1
        self._head_bytes = 0
        self._head_arrived()
        super().on_headers_complete()
        self._extensions["headrace.write"] = partial(write_chunk, self.cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of the body: a chunk, or what one read brought."""
        self._pieces += 1
        if self._pieces > self.max_pieces:
            self._refusal = (400, f"the body comes in more than {self.max_pieces} pieces")
            raise Refused
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived; whatever comes next is another one's head."""
        super().on_message_complete()
        self._in_head = True

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what its parser refuses, in our shape and with the real reason."""
        self._refuse(*self._refusal)

    def _count(self, size: int) -> None:
        self._parsed_head_bytes += size
        if self._parsed_head_bytes > self.max_head_bytes:
            self._refusal = (431, "the request's headers are too large")
            raise Refused

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout, self._head_is_late)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self._refuse(408, f"the request's headers did not arrive within {self.head_timeout:g} seconds")

    def _refuse(self, status: int, message: str) -> None:
        body = to_json(error_json(message, status)).encode()
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, _PHRASES[status], len(body), body)
        )
        self.transport.close()


def write_chunk(cycle: RequestResponseCycle, data: bytes) -> bool:
    """Write a piece of a chunked response, here and now: a fifth of what a task's wake-up and ``send`` cost.

    False, and nothing written, if that is for ``send`` to do: the reader is behind or gone, or the response has not
    begun, is over or is not chunked.
    """
    if cycle.flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
    return True


def with_limits(max_head_bytes: int, head_timeout: float) -> type[Connection]:
    """A connection class with these limits: bytes, seconds."""
    return type("LimitedConnection", (Connection,), {"max_head_bytes": max_head_bytes, "head_timeout": head_timeout})
