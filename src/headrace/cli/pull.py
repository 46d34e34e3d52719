"""``headrace pull``: fetch models into the cache."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.cli import flags
from headrace.cli.store import Names, megabytes, open_store, progress_bar
from headrace.config import CacheSettings
from headrace.weights.catalogue import CATALOGUE, DEFAULT_MODEL

SECTIONS = (Names, CacheSettings)

ABOUT = """\
Fetch models into the cache, so that they start without a network. Interrupted downloads go on where they stopped, and
what arrives is checked. Without a name, the default model is fetched."""

EXAMPLES = """\
  headrace pull
  headrace pull gemma3-270m-q4-k-m HuggingFaceTB/SmolLM2-360M-Instruct
"""


def run(argv: Sequence[str]) -> int:
    """Fetch each named model that is not there yet, and print its path.

    Raises:
        DownloadError: a model cannot be fetched.
        ModelError: a name names nothing.
    """
    config = flags.read(flags.parser("headrace pull", f"{ABOUT}\n\n{_catalogue()}", SECTIONS, EXAMPLES), argv, SECTIONS)
    store = open_store(config)
    for name in config.section(Names).models or (DEFAULT_MODEL,):
        with progress_bar(name) as progress:
            stored = store.pull(name, progress)
        print(f"{stored.name}: {megabytes(stored.bytes)} in {stored.path}")
    return 0


def _catalogue() -> str:
    rows = (f"  {model.name:22} {megabytes(model.download_bytes):>9}  {model.summary}" for model in CATALOGUE.values())
    return "\n".join(("catalogue:", *rows))
