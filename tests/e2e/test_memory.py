"""A served model takes what its weights take in their own precision, and little more."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.server import serve


def test_an_idle_server_is_its_weights_and_120_mb() -> None:
    """The whole resident set: the file's pages, which were read once, are given back. Each thread more than these two,
    as a machine with more processors would have, takes 2 MB to work in.
    """
    with serve("--kv-cache-memory", "1GiB", "--threads", "2") as server:
        weights = re.search(r"memory: weights +([\d.]+) MiB", server.output())
        resident = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
        assert weights is not None
        assert resident is not None
        assert float(weights[1]) < 100  # the default model has 135 M parameters of 4 and 8 bits
        assert int(resident[1]) * 1024 < float(weights[1]) * 2**20 + 120e6
