"""What one client's long prompts cost the others: their time to first token, and how long /health takes meanwhile.

    python -m benchmarks.fairness [--long-users 4] [--long-tokens 8000]

Starts the server with two keys. "idle": one client asks short questions, nobody else is there. "beside": another client
keeps ``--long-users`` prompts of ``--long-tokens`` tokens in flight. Writes benchmarks/results/DATE-fairness.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from pathlib import Path

import httpx

from benchmarks.machine import describe
from tests.e2e.server import ServerProcess, serve

RESULTS = Path(__file__).with_name("results")


def body(tokens: int, answer: int, rng: random.Random) -> dict[str, object]:
    prompt = [rng.randint(1000, 30000) for _ in range(tokens)]
    return {"prompt": prompt, "max_tokens": answer, "temperature": 0, "ignore_eos": True, "stream": True}


async def first_token(client: httpx.AsyncClient, tokens: int, answer: int, rng: random.Random) -> float:
    return await first_token_of(client, body(tokens, answer, rng))


async def first_token_of(client: httpx.AsyncClient, asked: dict[str, object]) -> float:
    """Seconds to the first chunk of a completion; it is read to its end."""
    begin, first = time.perf_counter(), 0.0
    async with client.stream("POST", "/v1/completions", json=asked) as stream:
        stream.raise_for_status()
        async for line in stream.aiter_lines():
            if line.startswith("data: {") and not first:
                first = time.perf_counter() - begin
    return first


async def short_questions(client: httpx.AsyncClient, count: int, rng: random.Random) -> list[float]:
    return [await first_token(client, 64, 8, rng) for _ in range(count)]


async def health_checks(client: httpx.AsyncClient, waits: list[float]) -> None:
    while True:
        begin = time.perf_counter()
        (await client.get("/health/live")).raise_for_status()
        waits.append(time.perf_counter() - begin)
        await asyncio.sleep(0.05)


async def flood(client: httpx.AsyncClient, tokens: int, rng: random.Random, done: list[float]) -> None:
    while True:
        done.append(await first_token(client, tokens, 8, rng))


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "count": len(ordered),
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p95_ms": round(1000 * ordered[int(0.95 * (len(ordered) - 1))], 1),
        "max_ms": round(1000 * ordered[-1], 1),
    }


async def measure(server: ServerProcess, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rng = random.Random(0)
    limits = httpx.Limits(max_connections=64)

    def client(key: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=600, limits=limits)

    async with client("short") as short, client("long") as long:
        await short_questions(short, 5, rng)
        idle = await short_questions(short, options.questions, rng)
        served: list[float] = []
        waits: list[float] = []
        others = [asyncio.create_task(flood(long, options.long_tokens, rng, served)) for _ in range(options.long_users)]
        others.append(asyncio.create_task(health_checks(short, waits)))
        await asyncio.sleep(2)
        beside = await short_questions(short, options.questions, rng)
        while not served:  # the long prompts get on, too
            await asyncio.sleep(0.1)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    return {
        "short, idle": spread(idle),
        "short, beside long": spread(beside),
        "long": spread(served),
        "health/live": spread(waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long-users", type=int, default=4)
    parser.add_argument("--long-tokens", type=int, default=8000)
    parser.add_argument("--questions", type=int, default=40)
    options = parser.parse_args()
    machine = describe()
    with serve("--api-key", "short", "long") as server:
        results = asyncio.run(measure(server, options))
    for name, values in results.items():
        print(f"{name:20} {values}")
    ratio = results["short, beside long"]["p50_ms"] / results["short, idle"]["p50_ms"]
    print(f"beside long prompts the median time to first token is {ratio:.1f} times the idle one")
    file = RESULTS / f"{time.strftime('%Y-%m-%d')}-fairness.json"
    file.write_text(json.dumps({"machine": machine, "settings": vars(options), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
