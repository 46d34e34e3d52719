"""What holding answers to JSON costs, and whether they are valid: one question a command.

    python -m benchmarks.constrained cost [--users 64] [--rounds 3]
    python -m benchmarks.constrained suite [--tokens 256] [--users 32] [--every 1]

``cost``: rounds of the same load, plain and held to a JSON schema in turn, on one server. ``suite``: every schema of
tests/data/json_schema_suite.jsonl that compiles, greedy and sampled; every answer that ended by itself must be valid.
Both write benchmarks/results/DATE-constrained-COMMAND.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import describe
from headrace.bench.client import Client
from headrace.bench.load import Level, run_level
from headrace.bench.workload import Length, Workload
from tests.e2e.server import ServerProcess, serve
from tests.grammar.suite import SuiteSchema, problem, read_suite

RESULTS = Path(__file__).with_name("results")
MODEL = "smollm2-135m-instruct"
PEOPLE = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0},
            "city": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            "active": {"type": "boolean"},
        },
        "required": ["name", "age", "city", "tags", "active"],
        "additionalProperties": False,
    },
}
"""Never complete within the answer: both kinds of answer have the same length."""


class HeldWorkload(Workload, frozen=True):
    """A workload whose answers are held to a schema."""

    def body(self, prompt: Any, output: int) -> bytes:
        plain = json.loads(super().body(prompt, output))
        del plain["ignore_eos"]
        return json.dumps(plain | {"guided_json": PEOPLE, "temperature": 0}).encode()


async def cost(server: ServerProcess, users: int, rounds: int, each: int) -> dict[str, Any]:
    client = Client(server.url)
    length = Length(128, 128)
    kinds = {
        kind: made(MODEL, False, True, length, length) for kind, made in (("plain", Workload), ("json", HeldWorkload))
    }
    for workload in kinds.values():
        await run_level(client, workload, Level(requests=users, concurrency=users))
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, workload in kinds.items():
            result = await run_level(client, workload, Level(requests=users * each, concurrency=users))
            if result.errors:
                raise SystemExit(f"{kind}: {result.errors} {result.first_error}")
            rates[kind].append(round(result.output_tokens_per_s, 1))
    client.close()
    median = {kind: statistics.median(found) for kind, found in rates.items()}
    return {
        "users": users,
        "tokens_per_s": rates,
        "median": median,
        "ratio": round(median["json"] / median["plain"], 3),
    }


async def ask(client: httpx.AsyncClient, schema: SuiteSchema, tokens: int, temperature: float) -> tuple[str, str]:
    """One answer's (verdict, text)."""
    prompt = f"Write one example of JSON that fits this JSON schema, nothing else: {json.dumps(schema.schema)}"
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": temperature,
        "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "suite", "schema": schema.schema}},
    }
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return f"refused {answer.status_code}", answer.json()["error"]["message"]
    choice = answer.json()["choices"][0]
    text = choice["message"]["content"]
    if choice["finish_reason"] != "stop":
        return choice["finish_reason"], text
    fault = problem(schema.schema, text)
    return ("valid", text) if fault is None else ("INVALID", f"{text}: {fault}")


async def suite(server: ServerProcess, users: int, tokens: int, every: int) -> dict[str, Any]:
    schemas = [schema for schema in read_suite() if not schema.unsupported][::every]
    gate = asyncio.Semaphore(users)
    found: list[tuple[str, float, str, str]] = []

    async with httpx.AsyncClient(
        base_url=server.url, timeout=600, limits=httpx.Limits(max_connections=users)
    ) as client:

        async def one(schema: SuiteSchema, temperature: float) -> None:
            async with gate:
                verdict, text = await ask(client, schema, tokens, temperature)
                found.append((schema.name, temperature, verdict, text))

        await asyncio.gather(*(one(schema, temperature) for schema in schemas for temperature in (0.0, 1.0)))
    counts = Counter(verdict for _, _, verdict, _ in found)
    ended = counts["valid"] + counts["INVALID"]
    return {
        "schemas": len(schemas),
        "answers": len(found),
        "verdicts": dict(counts),
        "valid_share_of_ended": counts["valid"] / max(ended, 1),
        "faults": [entry for entry in found if entry[2] not in ("valid", "length")],
        "cut": sorted({entry[0] for entry in found if entry[2] == "length"}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("cost", "suite"))
    parser.add_argument("--users", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", type=int, default=2, help="requests of each user in a round")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--every", type=int, default=1, help="only every so many of the schemas")
    options = parser.parse_args()
    machine = describe()
    with serve("--max-model-len", "4096") as server:
        if options.question == "cost":
            results = asyncio.run(cost(server, options.users or 64, options.rounds, options.each))
        else:
            results = asyncio.run(suite(server, options.users or 32, options.tokens, options.every))
    print(json.dumps(results, indent=1, ensure_ascii=False))
    file = RESULTS / f"{time.strftime('%Y-%m-%d')}-constrained-{options.question}.json"
    file.write_text(json.dumps({"machine": machine, "results": results}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
