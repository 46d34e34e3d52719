"""Opening model files: read-only maps and bounded reads. Every reader of this room starts here."""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import ModelFileError

MAX_JSON_BYTES = 32 << 20
"""Largest JSON file read (a big tokenizer_config.json is 2 MB)."""


def map_file(path: Path) -> memoryview:
    """A read-only view of the whole file. The map lives as long as any slice of the view does.

    Raises:
        ModelFileError: the file is missing, unreadable, empty or not a regular file.
    """
    _require_regular(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelFileError(f"{path}: the file is empty")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """The file as UTF-8 text, at most ``limit`` bytes of it.

    Raises:
        ModelFileError: missing, unreadable, larger than the limit, or not UTF-8.
    """
    _require_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise ModelFileError(f"{path}: larger than the limit of {limit} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: not UTF-8 text: {error}") from error


def _require_regular(path: Path) -> None:
    """Opening a pipe would wait for ever, and a device has no size; a name with NUL cannot exist."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{str(path)!r}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise ModelFileError(f"{path}: not a regular file")


def parse_json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Strict JSON whose top is an object: no duplicate keys, no NaN, no hostile depth or digits.

    Raises:
        ModelFileError: anything else; ``where`` names the file.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError as error:
        raise ModelFileError(f"{where}: JSON nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, too many digits, the hooks' own
        raise ModelFileError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; see `read_text` and `parse_json_object` for what is refused."""
    return parse_json_object(read_text(path), str(path))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key[:100]!r}")
            seen.add(key)
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def looks_like_pickle(head: bytes | memoryview) -> bool:
    """True for the first bytes of a pickle or of the zip archives that torch.save writes."""
    start = bytes(head[:4])
    return start.startswith(b"PK\x03\x04") or (len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5)


class Fields:
    """Typed, bounded reads from untrusted metadata; each complaint names the file, the field and the limit.

    ``defaults`` fills in what the mapping leaves out. A field that is present with a null value counts as left out.
    """

    def __init__(self, where: str, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self.where = where
        self._values = values
        self._defaults = defaults or {}

    def get(self, name: str) -> Any:
        """The raw value, the default where it is absent or null, else None."""
        value = self._values.get(name)
        return self._defaults.get(name) if value is None else value

    def error(self, name: str, complaint: str) -> ModelFileError:
        """An error about a field, to be raised by the caller."""
        return ModelFileError(f"{self.where}: {name} {complaint}")

    def integer(self, name: str, high: int, *, low: int = 1, default: int | None = None) -> int:
        """An integer in [low, high]."""
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.error(name, "is missing")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"must be an integer, not {_shown(value)}")
        if not low <= value <= high:
            raise self.error(name, f"must be between {low} and {high}, not {_shown(value)}")
        return value

    def number(self, name: str, *, low: float = 0.0, high: float = 1e12, default: float | None = None) -> float:
        """A finite number in (low, high]."""
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.error(name, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a number, not {_shown(value)}")
        if not low < value <= high:  # NaN fails this too
            raise self.error(name, f"must be above {low:g} and at most {high:g}, not {_shown(value)}")
        return float(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, not {_shown(value)}")
        return value

    def string(self, name: str, *, default: str | None = None) -> str:
        """A string."""
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.error(name, "is missing")
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, not {_shown(value)}")
        return value

    def numbers(self, name: str, count: int, *, low: float, high: float) -> tuple[float, ...]:
        """A list of exactly ``count`` numbers in (low, high]."""
        value = self.get(name)
        if not isinstance(value, list) or len(value) != count:
            raise self.error(name, f"must be a list of {count} numbers")
        items = Fields(f"{self.where}: {name}", {str(i): item for i, item in enumerate(value)})
        return tuple(items.number(str(i), low=low, high=high) for i in range(count))

    def section(self, name: str) -> Fields | None:
        """A nested object, or None where it is absent or null."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(name, f"must be an object, not {_shown(value)}")
        return Fields(f"{self.where}: {name}", value)

    def as_dict(self) -> dict[str, Any]:
        """The raw values, without defaults."""
        return dict(self._values)


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    text = repr(value) if not isinstance(value, dict | list) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
