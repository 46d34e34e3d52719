from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.weights import Store
from headrace.weights.index import configured_index


@pytest.fixture(scope="session")
def model() -> Path:
    """The default model's file, from the user's cache or fetched into it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Store(cache / "headrace", index_url=configured_index(os.environ, Path.home())).resolve()
