"""Reading a stream of server-sent events without parsing it: one byte search a token chunk, JSON for the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headrace.bench.stats import Sample

_KEYS = (b'"text":', b'"content":', b'"reasoning_content":', b'"reasoning":')
"""The keys whose non-empty string makes an event a token chunk. Inside a JSON string the quotes would be escaped, so
that the bytes of a key cannot be part of some text."""

_MOST = 16 << 20
"""Bytes of one event; a longer one is an error, not a reason to eat memory."""


class Scanner:
    """Counts the token chunks of one answer as its bytes arrive, and notes usage, errors and the end in ``sample``."""

    __slots__ = ("_last", "_tail", "done", "sample")

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.done = False
        self._tail = b""
        self._last: tuple[bytes, int, int] | None = None

    def feed(self, data: bytes) -> int:
        """How many token chunks ``data`` completed. Any division of the stream into pieces gives the same sum."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        begin = count = 0
        while (end := data.find(b"\n\n", begin)) >= 0:
            count += self._event(data, begin, end)
            begin = end + 2
        if begin < len(data):
            self._tail = data[begin:] if begin else data
            if len(self._tail) > _MOST:
                self._fail(f"an event is longer than {_MOST} bytes")
                self._tail = b""
        return count

    def finish(self) -> None:
        """The stream is over: without ``[DONE]`` it was cut short. Usage may ride on the last token chunk."""
        if not self.done and self.sample.error is None:
            self.sample.error, self.sample.detail = "truncated", "the stream ended without [DONE]"
        if self.sample.output_tokens is None and self._last is not None:
            data, begin, end = self._last
            self._read(data[begin:end])

    def _event(self, data: bytes, begin: int, end: int) -> bool:
        for key in _KEYS:
            at = data.find(key, begin, end)
            if at < 0:
                continue
            at += len(key)
            if data[at] == 32:
                at += 1
            if data[at] == 34 and data[at + 1] != 34:  # a quote, and not the closing one
                self._last = (data, begin, end)
                return True
        self._read(data[begin:end])
        return False

    def _read(self, event: bytes) -> None:
        """An event without text: the role, the finish reason, the usage, an error or the end."""
        for line in event.split(b"\n"):
            if not line.startswith(b"data:"):
                continue
            payload = line[5:].strip()
            if payload == b"[DONE]":
                self.done = True
                continue
            try:
                body = json.loads(payload)
            except ValueError:
                self._fail("an event is not JSON")
                continue
            if isinstance(body, dict):
                self._note(body)

    def _note(self, body: Mapping[str, Any]) -> None:
        if body.get("error"):
            error = body["error"]
            self._fail(str(error.get("message", error) if isinstance(error, dict) else error))
        usage = body.get("usage")
        if isinstance(usage, dict):
            self.sample.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.sample.output_tokens = _count(usage.get("completion_tokens"))
            self.sample.cached_tokens = _count((usage.get("prompt_tokens_details") or {}).get("cached_tokens")) or 0

    def _fail(self, detail: str) -> None:
        if self.sample.error is None:
            self.sample.error, self.sample.detail = "stream error", detail[:200]


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None
