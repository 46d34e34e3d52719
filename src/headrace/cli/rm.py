"""``headrace rm``: remove models from the cache."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.cli import flags
from headrace.cli.store import Names, megabytes, open_store
from headrace.config import CacheSettings
from headrace.errors import ConfigError

SECTIONS = (Names, CacheSettings)

ABOUT = "Remove models from the cache, by the names that `headrace list` shows. Files given by path are never touched."


def run(argv: Sequence[str]) -> int:
    """Delete each named model.

    Raises:
        ConfigError: no name was given.
        ModelError: the cache has no such model.
    """
    parser = flags.parser("headrace rm", ABOUT, SECTIONS, "  headrace rm smollm2-135m-instruct\n")
    config = flags.read(parser, argv, SECTIONS)
    names = config.section(Names).models
    if not names:
        raise ConfigError("rm: name at least one model; `headrace list` shows them")
    store = open_store(config)
    for name in names:
        removed = store.remove(name)
        print(f"removed {removed.name}: {megabytes(removed.bytes)} are free again")
    return 0
