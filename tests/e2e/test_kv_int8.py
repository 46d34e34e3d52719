"""A server with its KV cache in 8 bits: prefix hits, shared blocks and preemption leave its answers as they are."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.server import ServerProcess, serve

SHARED = "The mill stood where the river bent to the east, and the miller opened the sluice every morning. " * 4


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """With room for three sequences of full length, where twelve want to run."""
    limits = ("--max-model-len", "256", "--kv-cache-memory", "10MiB", "--max-num-seqs", "16")
    with serve("--kv-cache-dtype", "int8", *limits) as running:
        yield running


def ask(server: ServerProcess, salt: str, **body: Any) -> list[str]:
    plain = {"max_tokens": 100, "temperature": 0, "ignore_eos": True, "cache_salt": salt}
    found = httpx.post(f"{server.url}/v1/completions", json={**plain, **body}, timeout=120)
    assert found.status_code == 200, found.text
    return [choice["text"] for choice in found.json()["choices"]]


def test_prefix_hits_and_shared_blocks_change_nothing(server: ServerProcess) -> None:
    fresh = ask(server, "a", prompt=SHARED)
    assert ask(server, "a", prompt=SHARED) == fresh
    assert ask(server, "b", prompt=SHARED) == fresh
    sampled = {"prompt": SHARED, "max_tokens": 20, "temperature": 0.8, "seed": 4, "n": 3}
    assert ask(server, "a", **sampled) == ask(server, "c", **sampled)


def test_preemption_changes_nothing(server: ServerProcess) -> None:
    prompts = [f"A list of {i} things: " for i in range(12)]
    alone = [ask(server, f"alone-{i}", prompt=prompt) for i, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda i: ask(server, f"together-{i}", prompt=prompts[i]), range(12)))
    assert together == alone
    assert server.metric("vllm:num_preemptions_total") > 0
