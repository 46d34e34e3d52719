"""``headrace config explain``: every setting, its value, where it came from, and what it means."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headrace.cli import flags
from headrace.config import SECTIONS, knobs
from headrace.errors import ConfigError

ABOUT = """\
Show every setting of `headrace serve`: its value, where the value came from, and what it means. Takes the flags of
`headrace serve`, so that a command line can be checked before it is run. Secrets are masked."""

EXAMPLES = """\
  headrace config explain
  HEADRACE_PORT=9000 headrace config explain --config production.toml --max-num-seqs 64
"""


def run(argv: Sequence[str]) -> int:
    """Print the table of settings.

    Raises:
        ConfigError: a setting is unknown or has a bad value: the same error that ``headrace serve`` would give.
    """
    parser = flags.parser("headrace config explain", ABOUT, SECTIONS, EXAMPLES)
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    if argv[0] != "explain":
        raise ConfigError(f"config: no action {argv[0]!r}; the only one is explain")
    settings = flags.read(parser, argv[1:]).settings
    titles = {name: str(vars(section)["TITLE"]) for section in SECTIONS for name, _, _ in knobs(section)}
    rows = [
        (titles[name], name, " ".join(filter(None, [item.shown(), _unit(item.value, item.knob.unit)])), item.source)
        for name, item in settings.items()
    ]
    if sys.stdout.isatty():
        _table([(*row, settings[row[1]].knob.help) for row in rows])
        return 0
    for row in rows:
        print("\t".join((*row[1:], settings[row[1]].knob.help)))
    return 0


def _unit(value: object, unit: str) -> str:
    return "" if value is None else unit


def _table(rows: Sequence[tuple[str, str, str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "source", "meaning", box=None, pad_edge=False)
    previous = ""
    for title, name, value, source, meaning in rows:
        if title != previous:
            table.add_row(Text(title, style="bold"))
        previous = title
        style = "dim" if source == "default" else "green"
        table.add_row(f"  {name}", Text(value), Text(source, style=style), Text(meaning))
    Console().print(table)
