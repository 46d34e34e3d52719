"""Reading a JSON object field by field, strictly: a boolean is no number, "1" is not 1, null means not given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headrace.errors import InvalidRequest


def shown(value: object) -> str:
    """A value for an error message: short, on one line, never the content of a container."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "…")
    if isinstance(value, int | float):
        return str(value) if abs(value) < 1e21 else "a number of more than 21 digits"
    return "a list" if isinstance(value, list) else "an object"


def check_text(value: object, name: str, max_chars: int | None = None) -> str:
    """``value`` as a string that can be encoded as UTF-8.

    Raises:
        InvalidRequest: no string, too long, or half of a surrogate pair in it.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string, not {shown(value)}", name)
    if max_chars is not None and len(value) > max_chars:
        raise InvalidRequest(f"{name} has {len(value)} characters; the limit is {max_chars}", name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} has an unpaired surrogate at character {error.start}", name) from None
    return value


def check_token_ids(values: Iterable[object], name: str, vocab_size: int) -> tuple[int, ...]:
    """``values`` as token ids within the vocabulary.

    Raises:
        InvalidRequest: an element is no integer or out of the vocabulary.
    """
    ids = tuple(values)
    for value in ids:
        if type(value) is not int or not 0 <= value < vocab_size:
            raise InvalidRequest(f"{name} must hold token ids from 0 to {vocab_size - 1}, not {shown(value)}", name)
    return ids  # type: ignore[return-value]  # every element was checked to be an int


class Fields:
    """Typed reads of one object. Every read names the field in its error; null reads as the default."""

    def __init__(self, body: Mapping[str, Any], path: str = "") -> None:
        self._body = body
        self._path = path

    def raw(self, name: str) -> Any:
        """The value as it is, None if it is missing or null."""
        return self._body.get(name)

    def has_any(self, names: frozenset[str]) -> bool:
        """Whether the object has one of these fields at all."""
        return not names.isdisjoint(self._body)

    def boolean(self, name: str, default: bool = False) -> bool:
        """True or false, nothing that merely looks like it."""
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, f"must be true or false, not {shown(value)}")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """An integer in [low, high]."""
        value = self._body.get(name)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"must be an integer from {low} to {high}, not {shown(value)}")
        return value

    def number(self, name: str, low: float, high: float, *, above: bool = False) -> float | None:
        """A finite number in [low, high], or in (low, high] with ``above``."""
        value = self._body.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not (low < value if above else low <= value) or not value <= high:
            kind = f"greater than {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
            raise self.wrong(name, f"must be a number {kind}, not {shown(value)}")
        return float(value)

    def text(self, name: str, max_chars: int) -> str | None:
        """A string of at most ``max_chars`` characters."""
        value = self._body.get(name)
        return None if value is None else check_text(value, self._path + name, max_chars)

    def texts(self, name: str, max_items: int, max_chars: int, *, single: bool = False) -> tuple[str, ...]:
        """A list of non-empty strings; with ``single`` also one string alone."""
        value = self._body.get(name)
        if value is None:
            return ()
        if single and isinstance(value, str):
            value = [value]
        items = self._list(name, value, max_items)
        if not all(items):
            raise self.wrong(name, "must not contain an empty string")
        return tuple(check_text(item, self._path + name, max_chars) for item in items)

    def token_ids(self, name: str, max_items: int, vocab_size: int) -> tuple[int, ...] | None:
        """A list of token ids."""
        value = self._body.get(name)
        if value is None:
            return None
        return check_token_ids(self._list(name, value, max_items), self._path + name, vocab_size)

    def mapping(self, name: str, max_items: int) -> Mapping[str, Any]:
        """A JSON object."""
        value = self._body.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(name, f"must be an object, not {shown(value)}")
        if len(value) > max_items:
            raise self.wrong(name, f"has {len(value)} entries; the limit is {max_items}")
        return value

    def wrong(self, name: str, what: str) -> InvalidRequest:
        """The error for a field; the caller raises it."""
        return InvalidRequest(f"{self._path}{name} {what}", self._path + name)

    def _list(self, name: str, value: object, max_items: int) -> list[Any]:
        if not isinstance(value, list):
            raise self.wrong(name, f"must be a list, not {shown(value)}")
        if len(value) > max_items:
            raise self.wrong(name, f"has {len(value)} entries; the limit is {max_items}")
        return value
