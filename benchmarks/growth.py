"""What a server holds in memory when nobody asks it anything, and whether requests leave something behind.

    python -m benchmarks.growth [MODEL] [--requests 10000] [--clients 32]

Starts the server with a KV pool so small that the first few hundred requests fill it: what grows after that is a leak.
Requests are short (2 to 12 words, 1 or 2 tokens), no two alike, half of them chats and half of them streams. Prints the
resident set before the first request, after each tenth of them, and at rest after the last; exits with 1 if the second
half of them left more than ``--allowed`` MiB behind. Keeps benchmarks/results/DATE-growth-NAME.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import describe
from headrace.bench.process import tree_rss
from tests.e2e.server import ServerProcess, serve

RESULTS = Path(__file__).with_name("results")
MIB = 1 << 20
WORDS = ("river", "turns", "wheel", "that", "grinds", "grain", "water", "runs", "past", "mill", "race", "gate", "stone")


def call(rng: random.Random) -> bytes:
    """A whole HTTP request."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(2, 12))) + f" {rng.random()}"
    chat = rng.random() < 0.5
    asked: dict[str, object] = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    body = json.dumps({**asked, "max_tokens": rng.randint(1, 2), "stream": rng.random() < 0.5}).encode()
    path = b"/v1/chat/completions" if chat else b"/v1/completions"
    head = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (path, len(body)) + body


async def answer(reader: asyncio.StreamReader) -> None:
    """Read one answer to its end.

    Raises:
        ValueError: it is not a 200.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise ValueError(head.decode())
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))


async def client(port: int, turns: Iterator[int], seed: int) -> None:
    """Connects anew after every 50 calls, as clients come and go."""
    rng = random.Random(seed)
    writer = None
    for turn in turns:
        if writer is None or turn % 50 == 0:
            if writer is not None:
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(call(rng))
        await answer(reader)
    if writer is not None:
        writer.close()


async def load(port: int, count: int, clients: int, seed: int) -> None:
    turns = iter(range(count))
    await asyncio.gather(*(client(port, turns, seed * clients + i) for i in range(clients)))


def resident(server: ServerProcess) -> float:
    """MiB, at rest."""
    time.sleep(0.5)
    return tree_rss(server.process.pid) / MIB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--allowed", type=float, default=8.0, help="MiB that the second half may leave behind")
    asked = parser.parse_args()
    tenth = max(asked.requests // 10, 1)
    with serve(*([asked.model] if asked.model else []), "--kv-cache-memory", "192MiB") as server:
        port = int(server.url.rsplit(":", 1)[1])
        seen = [resident(server)]
        print(f"idle: {seen[0]:.1f} MiB", flush=True)
        begin = time.perf_counter()
        for part in range(10):
            asyncio.run(load(port, tenth, asked.clients, part))
            seen.append(resident(server))
            print(f"after {tenth * (part + 1)}: {seen[-1]:.1f} MiB", flush=True)
        seconds = time.perf_counter() - begin
    left = seen[10] - seen[5]
    name = Path(asked.model).stem if asked.model else "default"
    result = {"model": name, "requests": tenth * 10, "seconds": round(seconds, 1), "resident_mib": seen}
    result |= {"left_by_second_half_mib": round(left, 1), "machine": describe()}
    (RESULTS / f"{time.strftime('%Y-%m-%d')}-growth-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{tenth * 10} requests in {seconds:.0f} s; the second half left {left:.1f} MiB behind")
    return 0 if left <= asked.allowed else 1


if __name__ == "__main__":
    sys.exit(main())
