"""One HTTP/1.1 connection that costs a few microseconds a token: a protocol, no task and no queue per chunk."""

from __future__ import annotations

import asyncio
import json
import time
from typing import cast

import httptools
from msgspec import Struct

from headrace.bench.sse import Scanner
from headrace.bench.stats import Sample


class Progress(Struct):
    """Counters that a display may look at while a level runs."""

    total: int | None = None
    running: int = 0
    done: int = 0
    failed: int = 0
    chunks: int = 0


class Connection(asyncio.Protocol):
    """A kept-alive connection, one exchange at a time. ``reusable``: the server will take another one.

    ``answered``: the server began to answer the last exchange. ``body`` holds an answer that is not a stream.
    """

    def __init__(self, progress: Progress) -> None:
        self.reusable = False
        self.answered = False
        self.body = b""
        self._progress = progress
        self._transport: asyncio.Transport | None = None
        self._scanner = Scanner(Sample(start=0.0))
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] | None = None
        self._now = 0.0
        self._type = b""

    def exchange(self, request: bytes, sample: Sample) -> asyncio.Future[None]:
        """Send ``request``; the future is done when the answer has been read, or the connection is lost."""
        self._parser = httptools.HttpResponseParser(self)
        self._scanner = Scanner(sample)
        self._type = self.body = b""
        self.answered = self.reusable = False
        self._done = asyncio.get_running_loop().create_future()
        if self._transport is None or self.closed:
            self._end("connection lost", "closed before the request was sent")
        else:
            self._transport.write(request)
        return self._done

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        """Close at once; nothing is waited for."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: str | None = None, detail: str = "") -> None:
        sample = self._scanner.sample
        if self._done is None or self._done.done():
            return
        sample.end = time.perf_counter()
        if error is not None and sample.error is None:
            sample.error, sample.detail = error, detail
        self._done.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have come."""
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end("not HTTP", str(error))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: closed. That ends an answer without a length; any other is cut short."""
        self.reusable = False
        if self._scanner.done:
            self._end()
        else:
            self._end("connection lost", str(exc or "closed by the server"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        if name.lower() == b"content-type":
            self._type = value

    def on_headers_complete(self) -> None:
        """httptools: the body follows."""
        self.answered = True
        status = self._parser.get_status_code()
        sample = self._scanner.sample
        if status != 200:
            sample.error = f"http {status}"
        elif not self._type.startswith(b"text/event-stream"):
            sample.error = "not a stream"

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body. The one place that runs for every token."""
        sample = self._scanner.sample
        if sample.error is not None and not sample.chunks:
            self.body = (self.body + body)[: 1 << 20]
            return
        count = self._scanner.feed(body)
        if not count:
            return
        if sample.chunks:
            sample.gaps.append(self._now - sample.last)
        else:
            sample.first = self._now
        for _ in range(count - 1):  # arrived in the same read: no time between them
            sample.gaps.append(0.0)
        sample.last = self._now
        sample.chunks += count
        self._progress.chunks += count

    def on_message_complete(self) -> None:
        """httptools: the answer is complete."""
        self.reusable = bool(self._parser.should_keep_alive())
        sample = self._scanner.sample
        if sample.error is None:
            self._scanner.finish()
        elif not sample.detail:
            sample.detail = _message(self.body)
        self._end()


def _message(body: bytes) -> str:
    """The words of an error body: OpenAI's ``error.message`` where there is one."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:200]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
