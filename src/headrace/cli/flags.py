"""The command line, generated from the declarations in `headrace.config`: argparse, because it starts quickly."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from headrace.config import SECTIONS, Config, Knob, Setting, knobs, load, switch
from headrace.errors import ConfigError


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints in our error tree instead of a usage dump."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def parser(prog: str, about: str, sections: Sequence[type[object]], examples: str = "") -> argparse.ArgumentParser:
    """The command line of ``sections``: a group for each, a flag for each setting. Values stay text here."""
    positional = "".join(
        f" [{knob.metavar}]" for section in sections for _, _, knob in knobs(section) if knob.positional
    )
    made = _Parser(
        prog=prog,
        usage=f"%(prog)s{positional} [OPTIONS]",
        description=about,
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    if any(knob.env for section in sections for _, _, knob in knobs(section)):
        made.add_argument("--config", metavar="FILE", help="A TOML file that has the settings' names as keys.")
    for section in sections:
        group = made.add_argument_group(str(vars(section)["TITLE"]), (section.__doc__ or "").splitlines()[0])
        for name, default, knob in knobs(section):
            _add(group, name, default, knob)
    return made


def _add(group: Any, name: str, default: object, knob: Knob) -> None:
    about = _meaning(name, default, knob).replace("%", "%%")
    flag = "--" + name.replace("_", "-")
    if knob.positional:
        group.add_argument(name, nargs="*" if knob.many else "?", metavar=knob.metavar, help=about)
    elif knob.parse is switch:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
    else:
        several: dict[str, Any] = {"nargs": "+", "action": "extend"} if knob.many else {}
        metavar = "{" + ",".join(knob.choices) + "}" if knob.choices else knob.metavar
        group.add_argument(flag, metavar=metavar, help=about, **several)


def _meaning(name: str, default: object, knob: Knob) -> str:
    unit = f" In {knob.unit}." if knob.unit else ""
    shown = "" if knob.positional else f" Default: {Setting(name, default, '', knob).shown()}."
    return knob.help + unit + shown


def read(made: argparse.ArgumentParser, argv: Sequence[str], sections: Sequence[type[object]] = SECTIONS) -> Config:
    """The settings of one command: ``argv``, then environment, file and defaults.

    Raises:
        ConfigError: an unknown flag or setting, or a bad value.
    """
    return load(vars(made.parse_args(argv)), sections)
