"""What every folder of tests may use: the default model, for those that read a real file."""

import gc
import os
from pathlib import Path

import pytest

from headrace.weights import Store
from headrace.weights.index import configured_index


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """From the user's cache, or pulled into it: the download code for real, once on a new machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Store(cache / "headrace", index_url=configured_index(os.environ, Path.home())).resolve()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Garbage collections leave out what has been loaded, as in the server: one over all that tests import takes half a
    second of processor time, which is what a chat template may take in all."""
    gc.collect()
    gc.freeze()
