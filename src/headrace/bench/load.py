"""Driving the load: closed loop (so many at a time) and open loop (so many a second, come what may)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from itertools import islice

from msgspec import Struct

from headrace.bench.client import Client
from headrace.bench.process import peak_rss
from headrace.bench.stats import LevelResult, Sample, summarise
from headrace.bench.workload import WORDS, Calibration, Workload, arrivals
from headrace.errors import HeadraceError


class Level(Struct, frozen=True):
    """One level of load: ``concurrency`` requests at a time, or ``rate`` requests a second; exactly one is set.

    ``requests`` is how many there are in all, None for as many as start within ``seconds``.
    """

    requests: int | None
    concurrency: int | None = None
    rate: float | None = None
    seconds: float | None = None

    @property
    def label(self) -> str:
        """What the level is called in tables."""
        return f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:g} a second"


async def run_level(client: Client, workload: Workload, level: Level, pid: int | None = None) -> LevelResult:
    """Run one level and summarise it. ``pid`` names the server's process, whose memory is then watched."""
    bodies: Iterable[bytes] = workload.bodies(level.label)
    if level.requests is not None:  # drawn before the clock starts
        bodies = list(islice(bodies, level.requests))
    progress = client.progress
    progress.total, progress.done, progress.failed, progress.chunks = level.requests, 0, 0, 0
    peak = [0]
    watcher = asyncio.create_task(peak_rss(pid, peak)) if pid is not None else None
    late: list[float] = []
    cpu = time.process_time()
    try:
        if level.rate is None:
            samples = await _closed(client, workload.path, bodies, level)
        else:
            due = arrivals(level.rate, f"{workload.seed}/{level.label}/arrivals")
            samples = await _open(client, workload.path, zip(bodies, due, strict=False), level.seconds, late)
    finally:
        cpu = time.process_time() - cpu
        if watcher is not None:
            watcher.cancel()
    return summarise(level.label, samples, cpu=cpu, late=late, rss_bytes=peak[0])


async def _closed(client: Client, path: str, bodies: Iterable[bytes], level: Level) -> list[Sample]:
    samples: list[Sample] = []
    left = iter(bodies)
    stop = time.perf_counter() + level.seconds if level.seconds is not None else float("inf")

    async def worker() -> None:
        for body in left:
            samples.append(await client.send(path, body))
            if time.perf_counter() > stop:
                return

    await asyncio.gather(*(worker() for _ in range(level.concurrency or 1)))
    return samples


async def _open(
    client: Client, path: str, plan: Iterable[tuple[bytes, float]], seconds: float | None, late: list[float]
) -> list[Sample]:
    begin = time.perf_counter()
    running: list[asyncio.Task[Sample]] = []
    for body, offset in plan:
        if seconds is not None and offset > seconds:
            break
        if (wait := begin + offset - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        late.append(max(0.0, time.perf_counter() - begin - offset))
        running.append(asyncio.create_task(client.send(path, body, begin + offset)))
    return list(await asyncio.gather(*running))


async def warm_up(client: Client, workload: Workload, count: int) -> None:
    """Send ``count`` requests at once, with prompts that the measured ones do not repeat.

    Raises:
        HeadraceError: one of them failed, so that measuring makes no sense; says why.
    """
    samples = await asyncio.gather(
        *(client.send(workload.path, body) for body in islice(workload.bodies("warm-up"), count))
    )
    for sample in samples:
        if sample.error is not None:
            raise HeadraceError(f"the server at {client.url} does not answer: {sample.error}: {sample.detail}")


async def calibrate(client: Client, workload: Workload) -> Calibration:
    """Learn from the server's own ``usage`` how many tokens it counts for words; exact ids need none of this.

    Raises:
        HeadraceError: a request failed, or the server reports no usage.
    """
    if workload.ids:
        return workload.calibration
    sizes = (16, 80)
    counted = []
    for size in sizes:
        sample = await client.send(workload.path, workload.body(WORDS[:size], 1))
        if sample.error is not None:
            raise HeadraceError(f"the server at {client.url} does not answer: {sample.error}: {sample.detail}")
        if sample.prompt_tokens is None:
            raise HeadraceError("the server reports no usage.prompt_tokens: texts of a known length cannot be made")
        counted.append(sample.prompt_tokens)
    per_word = (counted[1] - counted[0]) / (sizes[1] - sizes[0])
    if per_word <= 0:
        raise HeadraceError(f"the server counts {counted} tokens for {sizes} words: texts cannot be calibrated")
    return Calibration(fixed=counted[0] - per_word * sizes[0], per_word=per_word)
