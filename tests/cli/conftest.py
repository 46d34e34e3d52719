from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.logs import OneLine
from headrace.weights import Store
from headrace.weights.index import configured_index


@pytest.fixture(scope="session")
def model() -> Path:
    """The default model's file, from the user's cache or fetched into it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Store(cache / "headrace", index_url=configured_index(os.environ, Path.home())).resolve()


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Commands that run in this process start logging for good; the tests after them want to read log lines, too."""
    root, ours = logging.getLogger(), logging.getLogger("headrace")
    levels = root.level, ours.level
    yield
    for handler in [handler for handler in root.handlers if isinstance(handler.formatter, OneLine)]:
        root.removeHandler(handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
