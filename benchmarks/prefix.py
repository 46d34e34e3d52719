"""What the prefix cache saves users who share a system prompt: their time to first token, with it and without.

    python -m benchmarks.prefix [MODEL] [--users 16] [--shared 512] [--own 32] [--answer 32] [--rounds 4]

Each user sends the same ``--shared`` tokens and ``--own`` tokens of its own, reads ``--answer`` tokens and asks again.
"first" is the first round, when all users come at once and nobody has computed the prefix yet; "later" are the others.
Keeps benchmarks/results/DATE-prefix-NAME.json.
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

from benchmarks.fairness import first_token_of
from benchmarks.machine import describe
from tests.e2e.server import ServerProcess, serve

RESULTS = Path(__file__).with_name("results")


async def user(client: httpx.AsyncClient, shared: list[int], asked: argparse.Namespace, seed: int) -> list[float]:
    """Seconds to the first token, by round."""
    rng, waits = random.Random(seed), []
    for _ in range(asked.rounds):
        prompt = [*shared, *(rng.randint(1000, 30000) for _ in range(asked.own))]
        body = {"prompt": prompt, "max_tokens": asked.answer, "temperature": 0, "ignore_eos": True, "stream": True}
        waits.append(await first_token_of(client, body))
    return waits


async def measure(server: ServerProcess, asked: argparse.Namespace) -> dict[str, float]:
    rng = random.Random(0)
    shared = [rng.randint(1000, 30000) for _ in range(asked.shared)]
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        await user(client, [rng.randint(1000, 30000)], argparse.Namespace(own=31, answer=8, rounds=1), -1)  # warm
        found = await asyncio.gather(*(user(client, shared, asked, seed) for seed in range(asked.users)))
    first = [waits[0] for waits in found]
    later = [wait for waits in found for wait in waits[1:]]
    return {"first_p50": statistics.median(first), "later_p50": statistics.median(later), "later_worst": max(later)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    for name, default in (("users", 16), ("shared", 512), ("own", 32), ("answer", 32), ("rounds", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    kind = Path(asked.model).stem if asked.model else "default"
    result: dict[str, object] = {"settings": {**vars(asked), "model": kind}, "machine": describe()}
    for name, flag in (("off", "--no-enable-prefix-caching"), ("on", "--enable-prefix-caching")):
        with serve(*([asked.model] if asked.model else []), flag) as server:
            found = asyncio.run(measure(server, asked))
        result[name] = found
        print(f"prefix caching {name:3}: " + ", ".join(f"{key} {1e3 * value:.0f} ms" for key, value in found.items()))
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-prefix-{kind}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
