"""What a run shows: a live line while it works, a table at the end, JSON and a plot for later."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.bench.connection import Progress
from headrace.bench.stats import LevelResult
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "load",
    "ok",
    "errors",
    "seconds",
    "out tok/s",
    "req/s",
    "TTFT p50/p95/p99 ms",
    "ITL p50/p95/p99 ms",
    "TPOT p50 ms",
    "E2E p50/p95/p99 s",
    "in/req",
    "out/req",
    "client CPU",
    "RSS MB",
)


def row(level: LevelResult) -> tuple[str, ...]:
    """One level as the cells of the table."""
    ttft, itl, e2e = level.ttft_ms, level.itl_ms, level.e2e_ms
    per = max(1, level.succeeded)
    return (
        level.label,
        str(level.succeeded),
        ", ".join(f"{count} {kind}" for kind, count in level.errors.items()) or "0",
        f"{level.seconds:.1f}",
        f"{level.output_tokens_per_s:.1f}",
        f"{level.requests_per_s:.2f}",
        f"{ttft.p50:.1f} / {ttft.p95:.1f} / {ttft.p99:.1f}",
        f"{itl.p50:.1f} / {itl.p95:.1f} / {itl.p99:.1f}",
        f"{level.tpot_ms.p50:.2f}",
        f"{e2e.p50 / 1e3:.2f} / {e2e.p95 / 1e3:.2f} / {e2e.p99 / 1e3:.2f}",
        f"{level.prompt_tokens / per:.1f}",
        f"{level.output_tokens / per:.1f}",
        f"{level.client_cpu_s:.2f} s, {100 * level.client_cpu_share:.1f} %",
        f"{level.server_rss_mb:.0f}" if level.server_rss_mb else "-",
    )


def table(levels: Sequence[LevelResult]) -> Table:
    """The final table: a column for each level, so that it fits a narrow terminal."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    made.add_column("")
    for level in levels:
        made.add_column(level.label, justify="right")
    for name, *cells in list(zip(COLUMNS, *map(row, levels), strict=True))[1:]:
        made.add_row(name, *cells)
    return made


def plain(level: LevelResult) -> str:
    """One level as one line, for output that is not a terminal."""
    return "  ".join(f"{name}: {cell}" for name, cell in zip(COLUMNS, row(level), strict=True))


async def live(progress: Progress, label: str, seconds: float | None) -> None:
    """Redraw a status line on stderr four times a second, until cancelled."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    begin = time.monotonic()
    with Live(Text(label), console=Console(stderr=True), refresh_per_second=4, transient=True) as screen:
        while True:
            screen.update(Text(status(progress, label, time.monotonic() - begin, seconds)))
            await asyncio.sleep(0.25)


def status(progress: Progress, label: str, elapsed: float, seconds: float | None) -> str:
    """The status line: how far, how fast, how long still."""
    rate = progress.chunks / elapsed if elapsed > 0 else 0.0
    left = "?"
    if seconds is not None:
        left = f"{max(0.0, seconds - elapsed):.0f} s"
    elif progress.total and progress.done:
        left = f"{elapsed / progress.done * (progress.total - progress.done):.0f} s"
    failed = f", {progress.failed} failed" if progress.failed else ""
    total = "" if progress.total is None else f" of {progress.total}"
    return f"{label}: {progress.running} running, {progress.done}{total} done{failed}, {rate:.0f} chunks/s, {left} left"


def write_json(file: Path, settings: Mapping[str, object], levels: Sequence[LevelResult]) -> None:
    """All numbers, with the settings that they were measured under.

    Raises:
        ConfigError: the file cannot be written.
    """
    machine = {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
    data = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "client_machine": machine,
        "settings": dict(settings),
        "levels": [level.as_dict() for level in levels],
    }
    try:
        file.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"json: cannot write {file}: {error.strerror}") from None


def check_plot() -> None:
    """Say so before the load is run, if plots cannot be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("plot: needs matplotlib; install it with: pip install 'headrace[plots]'")


def write_plot(file: Path, levels: Sequence[LevelResult]) -> None:
    """Throughput and latencies over the levels, as a picture; the format follows the file's suffix.

    Raises:
        ConfigError: the file cannot be written, or its format is unknown.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    names = [level.label for level in levels]
    axes[0].plot(names, [level.output_tokens_per_s for level in levels], marker="o")
    axes[0].set_title("output tokens per second")
    for axis, title, spreads in (
        (axes[1], "time to first token, ms", [level.ttft_ms for level in levels]),
        (axes[2], "inter-token latency, ms", [level.itl_ms for level in levels]),
    ):
        axis.set_title(title)
        for name in ("p50", "p95", "p99"):
            axis.plot(names, [getattr(spread, name) for spread in spreads], marker="o", label=name)
        axis.legend()
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"plot: cannot write {file}: {error}") from None
    finally:
        pyplot.close(figure)
