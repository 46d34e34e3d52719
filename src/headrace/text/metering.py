"""What a chat template may use up: one budget of text and one of time, and the operations that draw on them.

Everything here that can make something larger than what it was given says so to the rendering's `Meter` first.
"""

from __future__ import annotations

import json
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, Undefined
from jinja2.utils import pass_context

MAX_VALUE = 4_000_000
"""Largest single value that an expression may build: characters, and 8 for each container entry, repetition counted."""
MAX_TOTAL = 64_000_000
"""Everything that one rendering may build and emit, in the same units. A loop round or a call counts as 64."""
MAX_SECONDS = 0.6
"""Longest rendering, in seconds of its thread's processor time: a busy machine stops nobody. Real ones take
milliseconds."""

STEP = 64
"""Units that a loop round or a call costs."""

_METER = " meter"  # No template can name it: names have no spaces.
_MOST_DIGITS = 4096
"""Of a text that is read as a number: dividing numbers takes time with the square of their lengths."""
_LONG = 4096
"""Characters of a text below which looking for it, or in it, takes no time worth measuring."""
_LONGEST_NEEDLE = 64
_SLOW_SEARCHES = frozenset(("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"))
"""Python's searches that may take time with the product of both lengths."""
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(?:\d{4}|\*)")


class Meter:
    """What one rendering has used. Built when it starts."""

    __slots__ = ("_deadline", "_left")

    def __init__(self) -> None:
        self._left = MAX_TOTAL
        self._deadline = time.thread_time() + MAX_SECONDS

    def spend(self, units: int) -> None:
        """Use up so many units.

        Raises:
            SecurityError: the rendering takes too much memory or time.
        """
        self._left -= units
        if self._left < 0 or units > MAX_VALUE:
            raise SecurityError("the template builds too much text")
        if time.thread_time() > self._deadline:
            raise SecurityError(f"the template runs for more than {MAX_SECONDS} s")

    @property
    def variables(self) -> Mapping[str, Any]:
        """What a rendering's context needs for its operations to find this meter."""
        return {_METER: self}


def size_of(value: Any) -> int:
    """Characters and, at 8 each, entries of plain data; shared parts counted as often as they occur.

    Raises:
        SecurityError: it is larger than `MAX_VALUE`, or holds something that is not plain data.
    """
    size, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, (list, tuple)):
            pending += item
        elif not (item is None or isinstance(item, (bool, int, float, Undefined))):
            raise SecurityError(f"a chat template may not use {type(item).__name__} as data")
        size += 8
        if size + 8 * len(pending) > MAX_VALUE:
            raise SecurityError("the template builds too large a value")
    return size


def spend(context: Context, units: int) -> None:
    """Draw on the budget of the rendering that this context belongs to."""
    meter: Meter = context.parent[_METER]
    meter.spend(units)


@pass_context
def emit(context: Context, value: Any) -> Any:
    """Every ``{{ value }}`` passes here."""
    spend(context, len(value) if isinstance(value, str) else size_of(value))
    return value


@pass_context
def each(context: Context, values: Iterable[Any], static: int) -> Iterator[Any]:
    """Every loop goes over this; ``static`` is the length of the literal text in its body."""
    for value in values:
        spend(context, STEP + static)
        yield value


@pass_context
def items(context: Context, values: Any) -> Any:
    """What a filter that goes over every item takes passes here."""
    if hasattr(values, "__len__"):
        spend(context, STEP // 2 * len(values))
        return values
    return each(context, values, 0) if isinstance(values, types.GeneratorType) else values


@pass_context
def held(context: Context, values: Any) -> Any:
    """What a filter that looks into every item, or copies it to sort by, takes passes here."""
    if not isinstance(values, (str, list, tuple, dict)):
        values = list(each(context, values, 0))
    spend(context, size_of(values) + STEP // 2 * len(values))
    return values


@pass_context
def text(context: Context, value: Any) -> Any:
    """What a filter that copies text takes passes here."""
    spend(context, len(value) if isinstance(value, str) else 0)
    return value


def digits(value: Any) -> Any:
    """What is read as a number passes here."""
    if isinstance(value, str) and len(value) > _MOST_DIGITS:
        raise SecurityError(f"the template reads a number of more than {_MOST_DIGITS} digits")
    return value


@pass_context
def compared(context: Context, value: Any) -> Any:
    """What is compared or looked into passes here: a single comparison is quick, and thousands fit into a line."""
    if isinstance(value, (list, tuple, dict)):
        size_of(value)
        spend(context, 0)
    elif isinstance(value, str) and len(value) > _LONG:
        spend(context, 0)
    return value


@pass_context
def sliced(context: Context, value: Any) -> Any:
    """Every slice passes here."""
    spend(context, len(value) if isinstance(value, str) else 8 * len(value))
    return value


@pass_context
def sum_(context: Context, values: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """Jinja's filter ``sum``."""
    if attribute is not None:
        values = FILTERS["map"](context, values, attribute=attribute)
    total = start
    for value in values:
        spend(context, STEP)
        total = _add(context, total, value)
    return total


@pass_context
def trim(context: Context, value: Any, chars: str | None = None) -> str:
    """Jinja's filter of that name."""
    return str(string_method(context, as_text(context, value), "strip", chars))


def string_method(context: Context, value: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """A method of ``str``, called. The call itself has been paid for."""
    if name == "join":
        (values,) = args
        return join(context, values, value)
    if name == "replace":
        return replace(context, value, *args, **kwargs)
    given = (*args, *kwargs.values())
    if name in _SLOW_SEARCHES and any(isinstance(each, str) and len(each) > _LONGEST_NEEDLE for each in given):
        raise SecurityError(f"the template uses {name} with more than {_LONGEST_NEEDLE} characters")
    spend(context, len(value))
    result = getattr(value, name)(*args, **kwargs)
    if isinstance(result, list):
        spend(context, size_of(result))
    return result


@pass_context
def sized(context: Context, value: Any) -> Any:
    """Every list, tuple and dictionary that a template writes passes here."""
    spend(context, size_of(value))
    return value


@pass_context
def join(context: Context, values: Iterable[Any], separator: Any = "", attribute: Any = None) -> str:
    """Jinja's filter of that name, ``~`` and ``str.join``."""
    if attribute is not None:
        values = FILTERS["map"](context, values, attribute=attribute)
    between = str(separator)
    parts = []
    for value in values:
        spend(context, size_of(value) + len(between))
        parts.append(str(value))
    return between.join(parts)


@pass_context
def replace(context: Context, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    """Jinja's filter of that name and ``str.replace``."""
    text, old, new = as_text(context, value), str(old), str(new)
    times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    spend(context, len(text) + len(new) * times)
    return text.replace(old, new, times)


@pass_context
def as_text(context: Context, value: Any) -> str:
    """Jinja's filters ``string`` and ``safe``: without escaping, they are the same."""
    spend(context, size_of(value))
    return str(value)


@pass_context
def indent(context: Context, value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    """Jinja's filter of that name."""
    if (len(width) if isinstance(width, str) else int(width)) > 64:
        raise SecurityError("the template indents by more than 64 characters")
    text = as_text(context, value)
    spend(context, len(text) + 65 * (text.count("\n") + 1))
    return str(FILTERS["indent"](text, width, first, blank))


@pass_context
def format_(context: Context, value: Any, *values: Any) -> str:
    """Jinja's filter ``format``: printf style."""
    return str(_modulo(context, str(value), values))


def round_(value: Any, precision: int = 0, method: str = "common") -> Any:
    """Jinja's filter ``round``."""
    if not -64 <= precision <= 64:
        raise SecurityError("the template rounds to more than 64 digits")
    return FILTERS["round"](value, precision, method)


@pass_context
def tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As `transformers` has it: no HTML escapes, non-ASCII characters as they are."""
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > 16:
        raise SecurityError("the template indents JSON by more than 16 characters")
    spend(context, size_of(value))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    spend(context, len(text))
    return text


def _modulo(context: Context, left: Any, right: Any) -> Any:
    if isinstance(left, str):
        if _WIDE_FORMAT.search(left):
            raise SecurityError("the template formats to more than 999 characters")
        widths = sum(map(int, re.findall(r"\d{1,3}", left)))
        spend(context, len(left) + widths + size_of(right) * left.count("%"))
    return left % right


def _add(context: Context, left: Any, right: Any) -> Any:
    if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        spend(context, len(left) + len(right) if isinstance(left, str) else size_of(left) + size_of(right))
    return left + right


def _multiply(context: Context, left: Any, right: Any) -> Any:
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, (str, list, tuple)) and isinstance(times, int):
            each = 1 if isinstance(sequence, str) else STEP // 2
            spend(context, size_of(sequence) * max(times, 0) * each)
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 4096:
        raise SecurityError("the template computes too large a number")
    return left * right


def _power(context: Context, left: Any, right: Any) -> Any:
    spend(context, STEP)
    if not (abs(left) <= 1_000_000 and abs(right) <= 64):
        raise SecurityError("the template computes too large a number")
    return left**right


OPERATORS: Mapping[str, Callable[[Context, Any, Any], Any]] = {
    "%": _modulo,
    "+": _add,
    "*": _multiply,
    "**": _power,
}
