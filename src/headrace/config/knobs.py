"""How a setting is declared: what it means, how its text is read, which values it takes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from msgspec import Struct


class Knob(Struct, frozen=True):
    """One setting: what it means and which values it takes. Name, type and default are its dataclass field's.

    ``parse`` turns text into the value and raises ValueError with what is wrong. ``many`` takes several values;
    a None default can be asked for by name ("auto"). ``env`` False keeps a setting out of environment and file.
    """

    help: str
    parse: Callable[[str], object]
    metavar: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    many: bool = False
    secret: bool = False
    positional: bool = False
    env: bool = True


def integer(text: str) -> int:
    """A decimal whole number: no separators, no exponents."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text):
        raise ValueError("is not a whole number")
    return int(text)


def number(text: str) -> float:
    """A finite decimal number."""
    if not re.fullmatch(r"[+-]?\d{1,18}(\.\d{1,18})?", text):
        raise ValueError("is not a number")
    return float(text)


def size(text: str) -> int:
    """Bytes: a number with an optional unit; KiB, MiB, GiB, TiB are powers of 1024, kB, MB, GB, TB of 1000."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kKMGT])(i?)B?|B)?", text)
    if match is None:
        raise ValueError("is not a size; write it like 4GiB, 512MiB or 1000000")
    amount, letter, binary = match.groups()
    power = "_KMGT".index(letter.upper()) if letter else 0
    return int(float(amount) * (1024 if binary else 1000) ** power)


def duration(text: str) -> float:
    """Seconds: a number with an optional unit s, m or h; anything below 0 is for ever."""
    match = re.fullmatch(r"(-?\d{1,9}(?:\.\d{1,6})?)\s*([smh]?)", text)
    if match is None:
        raise ValueError("is not a time; write it like 30, 30s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def switch(text: str) -> bool:
    """A yes or no, as environment variables and files write them."""
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in known:
        raise ValueError("is neither true nor false")
    return known[text.lower()]


def text(value: str) -> str:
    """Any text but an empty one, without the space around it."""
    if not value.strip():
        raise ValueError("is empty")
    return value.strip()


def path(value: str) -> Path:
    """A path, with a leading ``~`` expanded."""
    return Path(text(value)).expanduser()


_METAVARS: Mapping[Callable[[str], object], str] = {integer: "N", number: "X", size: "SIZE", path: "PATH"}


def knob(default: object, help: str, parse: Callable[[str], object] = text, **more: Any) -> Any:
    """Declare a setting as a dataclass field; ``more`` are `Knob`'s other fields."""
    metavar = more.pop("metavar", _METAVARS.get(parse, "TEXT"))
    return dataclasses.field(default=default, metadata={"knob": Knob(help, parse, metavar, **more)})


def knobs(section: type[object]) -> Iterator[tuple[str, object, Knob]]:
    """The (name, default, declaration) of every setting of a section, in the order of declaration."""
    for field in dataclasses.fields(cast(Any, section)):
        yield field.name, field.default, field.metadata["knob"]
