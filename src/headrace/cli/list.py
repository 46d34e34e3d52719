"""``headrace list``: the models in the cache."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from headrace.cli import flags
from headrace.cli.store import megabytes, open_store
from headrace.config import CacheSettings

SECTIONS = (CacheSettings,)


def run(argv: Sequence[str]) -> int:
    """Print name, size, date and path of each complete model; tab-separated if not to a terminal."""
    config = flags.read(flags.parser("headrace list", "Show the models in the cache.", SECTIONS), argv, SECTIONS)
    store = open_store(config)
    rows = [
        (model.name, megabytes(model.bytes), time.strftime("%Y-%m-%d", time.localtime(model.modified)), str(model.path))
        for model in store.list()
    ]
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return 0
    if not rows:
        print(f"no models in {store.root}; fetch one with: headrace pull")
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "size", "since", "path", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
    return 0
