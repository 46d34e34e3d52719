"""A server of scripted event streams: what it sends, how it is cut into writes, and when, is the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Step = bytes | float
"""Bytes to write, or seconds to wait."""

Script = Callable[[dict[str, Any]], Sequence[Step]]
"""From a request's JSON body to the answer; raw bytes, HTTP head included."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def token(text: str) -> bytes:
    return event({"id": "x", "choices": [{"index": 0, "text": text, "finish_reason": None}], "usage": None})


def chat_token(text: str | None, key: str = "content") -> bytes:
    return event({"id": "x", "choices": [{"index": 0, "delta": {key: text}, "finish_reason": None}]})


def usage(prompt: int, output: int, cached: int = 0) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}
    return event({"id": "x", "choices": [], "usage": counts})


DONE = b"data: [DONE]\n\n"


def json_answer(status: int, body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        len(data),
        data,
    )


def obedient(first: float = 0.0, gap: float = 0.0) -> Script:
    """A script that sends as many tokens as asked, the first after ``first`` seconds, then one every ``gap``."""

    def script(body: dict[str, Any]) -> Sequence[Step]:
        prompt = body.get("prompt") or body["messages"][0]["content"]
        count = body["max_tokens"]
        length = len(prompt) if isinstance(prompt, list) else len(prompt.split()) * 2 + 5
        steps: list[Step] = [HEAD]
        for i in range(count):
            steps += [gap if i else first, chunk(token(" w"))]
        return [*steps, chunk(usage(length, count)), chunk(DONE), b"0\r\n\r\n"]

    return script


@dataclass
class Scripted:
    """The running server: where it is, what it was asked, and how many connections it saw."""

    script: Script
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    at_once: int = 0
    most_at_once: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                if head.startswith("GET"):
                    writer.write(json_answer(200, {"data": [{"id": "scripted"}]}))
                    continue
                length = next(int(line[15:]) for line in head.split("\r\n") if line.startswith("Content-Length:"))
                self.bodies.append(json.loads(await reader.readexactly(length)))
                self.at_once += 1
                self.most_at_once = max(self.at_once, self.most_at_once)
                closing = await self._play(self.script(self.bodies[-1]), writer)
                self.at_once -= 1
                if closing:
                    break
        writer.close()

    async def _play(self, steps: Sequence[Step], writer: asyncio.StreamWriter) -> bool:
        for step in steps:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif step == b"":
                return True
            else:
                writer.write(step)
                await writer.drain()
        return False


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Scripted]:
    """Listen on a free loopback port; an empty ``bytes`` in a script closes the connection."""
    state = Scripted(script)
    server = await asyncio.start_server(state.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    state.url = f"http://127.0.0.1:{port}"
    try:
        yield state
    finally:
        server.close()
