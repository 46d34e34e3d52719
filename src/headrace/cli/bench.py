"""``headrace bench``: measure any OpenAI-compatible server under load."""

# ruff: noqa: RUF009  (knob declares a setting; it makes no default that instances share)

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from msgspec.structs import replace

from headrace.bench import report
from headrace.bench.client import Client
from headrace.bench.load import Level, calibrate, run_level, warm_up
from headrace.bench.stats import LevelResult
from headrace.bench.workload import Length, Workload, parse_length, read_trace
from headrace.cli import flags
from headrace.config import Config, integer, knob, number, path, switch
from headrace.errors import ConfigError, HeadraceError

T = TypeVar("T")

ABOUT = """\
Send load to any OpenAI-compatible server and report its throughput and latencies. Closed loop: so many requests at a
time (--concurrency). Open loop: so many a second, however slow the answers are (--rate). Requests are streamed, greedy,
and run to their full length (ignore_eos). The client's own CPU time is reported beside the results."""

EXAMPLES = """\
  headrace bench --concurrency 1,4,16,64
  headrace bench --url http://10.0.0.7:8000 --rate 2,4,8 --duration 60 --json run.json --plot run.png
  headrace bench --concurrency 16 --shared-prefix 512 --input-len 32 --output-len 64
  headrace bench --endpoint chat --input-len lognormal:400:600:4000 --output-len 16-256
"""


def _numbers(text: str) -> tuple[float, ...]:
    values = tuple(number(item.strip()) for item in text.split(","))
    if not all(0 < value <= 100_000 for value in values):
        raise ValueError("must be numbers above 0 and at most 100000")
    return values


def _counts(text: str) -> tuple[int, ...]:
    values = tuple(integer(item.strip()) for item in text.split(","))
    if not all(0 < value <= 10_000 for value in values):
        raise ValueError("must be whole numbers from 1 to 10000")
    return values


def _range(text: str) -> Length:
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high) < 2**31):
        raise ValueError("is not a range like 1000-30000")
    return Length(int(low), int(high))


def _own(default: object, help: str, *args: Any, **more: Any) -> Any:
    """A setting of this command alone: never from the environment or a file."""
    return knob(default, help, *args, env=False, **more)


@dataclass(frozen=True, slots=True)
class Target:
    """Which server is measured."""

    TITLE: ClassVar[str] = "server"

    url: str = _own("http://127.0.0.1:8000", "The server's root.", metavar="URL")
    model: str | None = _own(None, "Model name to ask for. auto is the first that /v1/models lists.", metavar="NAME")
    endpoint: str = _own("completions", "Which route is asked.", choices=("completions", "chat"))
    api_key: tuple[str, ...] = knob(
        (), "Key to present. HEADRACE_API_KEY does the same, unseen by ps.", many=True, secret=True, metavar="KEY"
    )
    pid: int | None = _own(None, "The server's process, whose memory is then watched (Linux).", integer, minimum=1)
    timeout: float = _own(
        600.0, "Longest that one request may take.", number, unit="seconds", minimum=0.001, maximum=86_400
    )


@dataclass(frozen=True, slots=True)
class Load:
    """How hard it is asked: levels run one after another."""

    TITLE: ClassVar[str] = "load"

    concurrency: tuple[int, ...] = _own((1, 4, 16, 64), "Requests at a time; a level for each.", _counts, metavar="N,N")
    rate: tuple[float, ...] = _own(
        (), "Poisson arrivals a second, instead of --concurrency; a level for each.", _numbers, metavar="X,X"
    )
    requests: int | None = _own(
        None,
        "Requests in each level. auto is twice the concurrency and at least 8; with --rate, 30 seconds' worth;"
        " with --duration, as many as fit.",
        integer,
        minimum=1,
        maximum=1_000_000,
    )
    duration: float | None = _own(
        None, "Start no new request of a level after this.", number, unit="seconds", minimum=0.1, maximum=86_400
    )
    warmup: int = _own(2, "Requests before the first level, not counted.", integer, minimum=0, maximum=1000)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked. A LENGTH is 128, 64-512 (uniform) or lognormal:MEAN:DEVIATION[:MOST]."""

    TITLE: ClassVar[str] = "workload"

    input_len: Length = _own(Length(128, 128), "Prompt length.", parse_length, unit="tokens", metavar="LENGTH")
    output_len: Length = _own(Length(128, 128), "Answer length.", parse_length, unit="tokens", metavar="LENGTH")
    trace: Path | None = _own(
        None, "CSV file with columns input and output (token counts), instead of the two lengths.", path
    )
    shared_prefix: int = _own(
        0, "Tokens that all prompts begin with, before their own.", integer, unit="tokens", minimum=0, maximum=10**7
    )
    prompt_kind: str | None = _own(
        None,
        "Prompts as token ids (exact counts) or text (common words, calibrated by the server's usage)."
        " auto is ids for completions, text for chat.",
        choices=("ids", "text"),
    )
    token_ids: Length = _own(
        Length(1000, 30000), "Range of prompt ids; keep it within the vocabulary.", _range, metavar="LOW-HIGH"
    )
    seed: int = _own(0, "The same seed sends the same requests.", integer, minimum=0, maximum=2**63)


@dataclass(frozen=True, slots=True)
class Output:
    """Where the numbers go, besides the table."""

    TITLE: ClassVar[str] = "output"

    json: Path | None = _own(None, "Write all numbers and settings here.", path)
    plot: Path | None = _own(None, "Draw throughput and latencies here (.png, .svg, .pdf).", path)
    progress: bool = _own(True, "Show a live status line when on a terminal.", switch)


SECTIONS = (Target, Load, Shape, Output)


def run(argv: Sequence[str]) -> int:
    """Run the levels one after another and report them; 1 if every request failed.

    Raises:
        ConfigError: a bad option.
        HeadraceError: the server cannot be measured at all.
    """
    config = flags.read(flags.parser("headrace bench", ABOUT, SECTIONS, EXAMPLES), argv, SECTIONS)
    _refuse_contradictions({name for name, item in config.settings.items() if item.source != "default"})
    output = config.section(Output)
    if output.plot is not None:
        report.check_plot()
    model, results = _loop(_measure(config))
    if output.json is not None:
        settings = {name: item.shown() for name, item in config.settings.items()} | {"model": model}
        report.write_json(output.json, settings, results)
    if output.plot is not None:
        report.write_plot(output.plot, results)
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(report.table(results))
    for result in results:
        if result.first_error:
            print(f"{result.label}: first error: {result.first_error}", file=sys.stderr)
        if result.without_usage:
            print(f"{result.label}: no usage in {result.without_usage} answers: chunks counted", file=sys.stderr)
    return 0 if any(result.succeeded for result in results) else 1


def _refuse_contradictions(given: set[str]) -> None:
    for one, other in (("concurrency", "rate"), ("input_len", "trace"), ("output_len", "trace")):
        if {one, other} <= given:
            raise ConfigError(f"{one} and {other} contradict each other: give one of them")


def _loop(work: Coroutine[None, None, T]) -> T:
    try:
        import uvloop
    except ImportError:  # Windows has none; the cost of a token is then higher, and reported as always
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def _measure(config: Config) -> tuple[str, list[LevelResult]]:
    """The model's name as the server knows it, and the results."""
    target, load = config.section(Target), config.section(Load)
    client = Client(target.url.rstrip("/"), next(iter(target.api_key), None), target.timeout)
    workload = _workload(config.section(Shape), target.endpoint == "chat", await _model(client, target.model))
    workload = replace(workload, calibration=await calibrate(client, workload))
    if load.warmup:
        await warm_up(client, workload, load.warmup)
    results = []
    show = config.section(Output).progress and sys.stderr.isatty()
    for level in levels(load):
        screen = asyncio.create_task(report.live(client.progress, level.label, level.seconds)) if show else None
        try:
            results.append(await run_level(client, workload, level, target.pid))
        finally:
            if screen is not None:
                screen.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await screen
        if not sys.stdout.isatty():
            print(report.plain(results[-1]), flush=True)
    client.close()
    return workload.model, results


def levels(load: Load) -> list[Level]:
    """The levels that the options ask for; ``requests`` where none is given is what `Load` says."""
    if load.rate:
        count = load.requests
        seconds = load.duration or (30.0 if count is None else None)
        return [Level(count, rate=rate, seconds=seconds) for rate in load.rate]
    return [
        Level(
            load.requests or (max(8, 2 * concurrency) if load.duration is None else None),
            concurrency=concurrency,
            seconds=load.duration,
        )
        for concurrency in load.concurrency
    ]


def _workload(shape: Shape, chat: bool, model: str) -> Workload:
    if chat and shape.prompt_kind == "ids":
        raise ConfigError("prompt_kind: the chat endpoint takes text only; use --endpoint completions for ids")
    return Workload(
        model=model,
        chat=chat,
        ids=not chat if shape.prompt_kind is None else shape.prompt_kind == "ids",
        input=shape.input_len,
        output=shape.output_len,
        shared_prefix=shape.shared_prefix,
        token_ids=(shape.token_ids.low, shape.token_ids.high),
        trace=read_trace(shape.trace) if shape.trace is not None else (),
        seed=shape.seed,
    )


async def _model(client: Client, named: str | None) -> str:
    if named is not None:
        return named
    listed = await client.get("/v1/models")
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise HeadraceError(f"{client.url}/v1/models lists no model; name one with --model") from None
