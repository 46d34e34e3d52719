"""Requests to one server over kept-alive connections."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct, field

from headrace.bench.connection import Connection, Progress
from headrace.bench.stats import Sample
from headrace.errors import ConfigError, HeadraceError

_CONNECT_SECONDS = 10


class Client(Struct):
    """``url`` is the server's root, or ends in /v1; ``timeout`` is seconds for one whole request."""

    url: str
    api_key: str | None = None
    timeout: float = 600.0
    progress: Progress = field(default_factory=Progress)
    _idle: list[Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url: {self.url!r} is not like http://host:port")

    async def send(self, path: str, body: bytes, due: float | None = None) -> Sample:
        """POST ``body`` and read the stream to its end; a failure is in the sample, never raised.

        ``due`` is when the request should have been sent (the clock then starts there), None for now.
        """
        sample = Sample(start=time.perf_counter() if due is None else due)
        self.progress.running += 1
        await self._exchange(self._head("POST", path, len(body)) + body, sample)
        self.progress.running -= 1
        self.progress.done += 1
        self.progress.failed += sample.error is not None
        return sample

    async def get(self, path: str) -> Any:
        """The JSON of a GET, for set-up; not measured.

        Raises:
            HeadraceError: no answer, an error, or not JSON.
        """
        connection = await self._open()
        sample = Sample(start=time.perf_counter())
        try:
            async with asyncio.timeout(self.timeout):
                await connection.exchange(self._head("GET", path, 0), sample)
            if sample.error == "not a stream":
                return json.loads(connection.body)
        except (TimeoutError, ValueError) as error:
            sample.error, sample.detail = "no JSON", str(error)
        finally:
            connection.close()
        raise HeadraceError(f"GET {path} of {self.url} failed: {sample.error} {sample.detail}")

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().close()

    def _head(self, method: str, path: str, length: int) -> bytes:
        parts = urlsplit(self.url)
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        lines = [f"{method} {prefix}{path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        lines += ["Content-Type: application/json", f"Content-Length: {length}", "Accept: text/event-stream", "", ""]
        return "\r\n".join(lines).encode("latin-1")

    async def _exchange(self, request: bytes, sample: Sample) -> None:
        while True:
            reused = self._take()
            try:
                connection = reused or await self._open()
            except HeadraceError as error:
                sample.end, sample.error, sample.detail = time.perf_counter(), "connect", str(error)
                return
            try:
                async with asyncio.timeout(self.timeout):
                    await connection.exchange(request, sample)
            except TimeoutError:
                sample.end, sample.error = time.perf_counter(), "timeout"
                sample.detail = f"no end within {self.timeout:g} s"
            if connection.reusable and sample.error != "timeout":
                self._idle.append(connection)
            else:
                connection.close()
            if reused is None or connection.answered or sample.error != "connection lost":
                return
            # The server closed an idle connection just as we used it (RFC 9112, 9.3.1): try another one.
            sample.error, sample.detail = None, ""

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _open(self) -> Connection:
        parts = urlsplit(self.url)
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                made = await loop.create_connection(lambda: Connection(self.progress), host, port, ssl=secure)
        except TimeoutError:
            raise HeadraceError(f"no connection to {host}:{port} within {_CONNECT_SECONDS} s") from None
        except OSError as error:
            raise HeadraceError(f"no connection to {host}:{port}: {error.strerror or error}") from None
        return made[1]
