"""Clients that connect, stream, disconnect and send garbage, for as long as they are told to.

``python -m tests.e2e.soak --seconds 600 --clients 64`` starts a server, runs them, and fails unless every block is free
at the end and memory is flat. Everything is seeded; everything stays on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

import httpx

from tests.e2e.server import ServerProcess, serve

WORDS = ["the", "river", "turns", "a", "wheel", "that", "grinds", "grain", "and", "water", "runs", "past", "mill"]


@dataclass
class Counts:
    """What the clients saw. ``unexpected`` holds every answer that no rule explains."""

    completed: int = 0
    disconnected: int = 0
    refused: int = 0
    shed: int = 0
    unexpected: list[str] = field(default_factory=list)


def some_text(random: Random, most: int) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(1, most)))


async def stream(client: httpx.AsyncClient, random: Random, counts: Counts) -> None:
    """One streamed or plain call, read to its end or dropped after a few chunks."""
    body: dict[str, object] = {
        "prompt": some_text(random, 200),
        "max_tokens": random.randint(1, 60),
        "temperature": random.choice([0, 1]),
        "n": random.choice([1, 1, 1, 3]),
        "stream": True,
    }
    leave_after = random.randint(0, 20) if random.random() < 0.4 else None
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code in {429, 503}:
            counts.shed += 1
            return
        if answer.status_code != 200:
            counts.unexpected.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
            return
        done, lines = False, 0
        async for line in answer.aiter_lines():
            done = done or line == "data: [DONE]"
            lines += 1
            if leave_after is not None and lines > leave_after:
                counts.disconnected += 1
                return
        if done:
            counts.completed += 1
        else:
            counts.unexpected.append("a stream ended without [DONE]")


GARBAGE: list[bytes] = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    json.dumps({"prompt": "x", "max_tokens": 10**12}).encode(),
    json.dumps({"prompt": [[-1]], "max_tokens": 4}).encode(),
    json.dumps({"prompt": "x" * 3_000_000}).encode(),
    json.dumps({"prompt": "x", "n": 10**6}).encode(),
    json.dumps({"prompt": "x", "stop": [str(i) for i in range(10_000)]}).encode(),
    json.dumps({"prompt": "x", "temperature": "hot"}).encode(),
]


async def garbage(client: httpx.AsyncClient, random: Random, counts: Counts) -> None:
    """A body that must be refused with a 4xx and an error that says why."""
    body = random.choice(GARBAGE)
    answer = await client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    if 400 <= answer.status_code < 500 and answer.json()["error"]["message"]:
        counts.refused += 1
    else:
        counts.unexpected.append(f"{answer.status_code} for {body[:60]!r}")


async def rude(address: tuple[str, int], random: Random, counts: Counts) -> None:
    """Raw bytes that are not HTTP, or half a request, and then nothing."""
    _reader, writer = await asyncio.open_connection(*address)
    writer.write(
        random.choice(
            [
                random.randbytes(random.randint(1, 2000)),
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
                b"GET / HTTP/9.9\r\n\r\n",
            ]
        )
    )
    await writer.drain()
    await asyncio.sleep(random.random() * 0.1)
    writer.close()
    counts.disconnected += 1


async def one_client(server: ServerProcess, until: float, random: Random, counts: Counts) -> None:
    url = urlsplit(server.url)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        while time.monotonic() < until:
            kind = random.random()
            try:
                if kind < 0.75:
                    await stream(client, random, counts)
                elif kind < 0.9:
                    await garbage(client, random, counts)
                else:
                    await rude((str(url.hostname), int(url.port or 0)), random, counts)
            except (httpx.TransportError, OSError) as error:
                # What is refused may close the connection while the client still writes it.
                if server.process.poll() is not None:
                    counts.unexpected.append(f"the server is gone: {error!r}")
                    return
                counts.refused += 1


async def soak(server: ServerProcess, clients: int, seconds: float, random: Random) -> Counts:
    """Runs the clients for so many seconds and counts what they saw."""
    counts = Counts()
    until = time.monotonic() + seconds
    await asyncio.gather(*(one_client(server, until, Random(random.getrandbits(64)), counts) for _ in range(clients)))
    return counts


def main() -> int:
    """The long run: prints what happened and the memory at its beginning, middle and end; exits 1 on any failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    memory, random = [], Random(options.seed)
    with serve("--kv-cache-memory", "512MiB") as server:  # small enough that the first part fills it
        for part in range(5):
            counts = asyncio.run(soak(server, options.clients, options.seconds / 5, random))
            server.wait_until_idle(30)
            memory.append(server.resident_anonymous() / 2**20)
            print(f"part {part + 1} of 5: {counts}, anonymous memory {memory[-1]:.1f} MiB", flush=True)
            if counts.unexpected:
                return 1
        integrity = server.metric("headrace:integrity_failures_total")
        code = server.stop()
    # The first part fills the KV pool, which is touched lazily; from then on memory must not grow.
    grown = memory[-1] - memory[1]
    print(f"growth after the second part {grown:.1f} MiB, integrity failures {integrity:.0f}, exit code {code}")
    return 0 if grown < 16 and integrity == 0 and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
