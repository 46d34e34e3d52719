"""How much prefill a step may hold so that nobody waits long for it. Pure arithmetic; times are passed in.

A token's work grows with its position: its linear layers cost the same everywhere, its attention costs as much as
there is before it. Work is counted in *units*: one unit is a token at the beginning of its context, and a token at
position p is 1 + p / ``context_unit`` of them. What a unit takes in seconds is learnt from the steps themselves.
"""

from __future__ import annotations

import math

SMALLEST_CHUNK = 16
"""Tokens that the first in the queue is given in any step that has room for them: below that a step is all overhead."""

_LEARN = 0.2
"""Weight of the newest step in the running means."""


def units(start: int, count: int, context_unit: float) -> float:
    """Work of ``count`` tokens from position ``start`` on."""
    return count + count * (start + (count - 1) / 2) / context_unit


def tokens_within(budget: float, start: int, context_unit: float) -> int:
    """The most tokens from position ``start`` on whose work is at most ``budget`` units."""
    if budget <= 0:
        return 0
    linear = 1 + (start - 0.5) / context_unit
    count = int((math.sqrt(linear * linear + 2 * budget / context_unit) - linear) * context_unit)
    while units(start, count + 1, context_unit) <= budget:
        count += 1
    while count and units(start, count, context_unit) > budget:
        count -= 1
    return count


class Pace:
    """Learns how long a unit of prefill takes, and says how many of them take ``seconds``.

    ``most`` bounds the answer from above, and is the answer until a step has been seen.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._decode_step = 0.0
        self._per_unit = 0.0

    def observe(self, prefill_units: float, seconds: float) -> None:
        """A step with so much prefill took so long. What it would have taken without any is not prefill's."""
        if prefill_units == 0:
            self._decode_step = _towards(self._decode_step, seconds)
        else:
            self._per_unit = _towards(self._per_unit, max(seconds - self._decode_step, 0.0) / prefill_units)

    @property
    def budget(self) -> float:
        """Units of prefill for a step that others wait for."""
        if self._per_unit == 0.0:
            return self._most
        return min(self._most, self._seconds / self._per_unit)


def _towards(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _LEARN * (value - mean)
