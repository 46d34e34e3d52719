"""What must hold while many clients are served at once: same text, truthful health, nothing lost, nothing kept."""

import asyncio
import random
import time

import httpx
import pytest

from tests.e2e.server import PATIENCE, ServerProcess, serve
from tests.e2e.soak import Counts, soak

PROMPTS = [
    f"Question {number}: name {number % 7 + 2} things that are found in a kitchen. Answer:" for number in range(24)
]


async def complete(client: httpx.AsyncClient, prompt: str, **extra: object) -> str:
    body = {"prompt": prompt, "max_tokens": 32, "temperature": 0, **extra}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_greedy_text_does_not_depend_on_company(idle_server: ServerProcess) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(base_url=idle_server.url, timeout=120) as client:
            alone = [await complete(client, prompt, cache_salt=f"alone{i}") for i, prompt in enumerate(PROMPTS[:8])]
            together = await asyncio.gather(*(complete(client, prompt) for prompt in PROMPTS))
            again = await asyncio.gather(*(complete(client, prompt) for prompt in reversed(PROMPTS)))
        assert together[:8] == alone
        assert again[::-1] == together

    asyncio.run(run())


def test_health_answers_while_the_engine_is_busy(idle_server: ServerProcess) -> None:
    async def run() -> None:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=idle_server.url, timeout=120, limits=limits) as client:
            load = [asyncio.create_task(complete(client, prompt * 20, ignore_eos=True)) for prompt in PROMPTS]
            began, waits = time.perf_counter(), []
            while not all(task.done() for task in load):
                start = time.perf_counter()
                assert (await client.get("/health/live")).status_code == 200
                waits.append(time.perf_counter() - start)
                await asyncio.sleep(0.02)
            await asyncio.gather(*load)
        median, took = sorted(waits)[len(waits) // 2], time.perf_counter() - began
        assert median < took / 20, f"median of {len(waits)} health checks: {median:.3f} s, the load took {took:.1f} s"

    asyncio.run(run())


def test_a_disconnected_client_frees_its_blocks(idle_server: ServerProcess) -> None:
    async def run() -> None:
        body = {"prompt": "Tell me a very long story.", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        async with httpx.AsyncClient(base_url=idle_server.url, timeout=60) as client:
            for _ in range(5):
                async with client.stream("POST", "/v1/completions", json=body) as stream:
                    async for _line in stream.aiter_lines():
                        break
            soon = httpx.Timeout(60, read=0.2)
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/v1/completions", json={**body, "stream": False}, timeout=soon)

    asyncio.run(run())
    idle_server.wait_until_idle()


def test_sigterm_under_load_loses_no_stream() -> None:
    admitted = 0

    async def read(client: httpx.AsyncClient, prompt: str, counts: list[int]) -> None:
        nonlocal admitted
        body = {"prompt": prompt, "max_tokens": 100, "temperature": 0, "ignore_eos": True, "stream": True}
        done = False
        tokens = 0
        async with client.stream("POST", "/v1/completions", json=body) as stream:
            assert stream.status_code == 200
            admitted += 1
            async for line in stream.aiter_lines():
                done = done or line == "data: [DONE]"
                tokens += '"text"' in line
        assert done, f"a stream ended after {tokens} chunks without [DONE]"
        counts.append(tokens)

    async def run(server: ServerProcess) -> list[int]:
        counts: list[int] = []
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            streams = [asyncio.create_task(read(client, prompt, counts)) for prompt in PROMPTS]
            while admitted < len(PROMPTS):
                await asyncio.sleep(0.02)
            server.process.terminate()
            await asyncio.gather(*streams)
        return counts

    with serve("--grace-period", "300") as server:
        assert len(asyncio.run(run(server))) == len(PROMPTS)
        assert server.process.wait(PATIENCE) == 0, server.output()


def test_short_soak_leaves_nothing_behind(idle_server: ServerProcess) -> None:
    """The ten-minute run has its own command (benchmarks/README.md); this is the same code for some seconds."""
    counts: Counts = asyncio.run(soak(idle_server, clients=24, seconds=12, random=random.Random(1)))
    assert counts.unexpected == [], counts.unexpected[:5]
    assert min(counts.completed, counts.disconnected, counts.refused) > 0, counts
