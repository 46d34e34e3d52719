"""How much prefill a step may hold so that nobody waits long for it. Pure arithmetic; times are passed in.

A token's work grows with its position: its linear layers cost the same everywhere, its attention costs as much as
there is before it. Work is counted in *units*: one unit is a token at the beginning of its context, and a token at
position p is 1 + p / ``context_unit`` of them. What a unit takes in seconds is learnt from the steps themselves.
"""

from __future__ import annotations

import math

SMALLEST_CHUNK = 16
"""Tokens that the first in the queue is given in any step that has room for them: below that a step is all overhead."""

_SHARE = 1.5
"""Prefill may take this many times what the step's decoding takes, if that is more: where a token takes long anyway, as
in large models, a fixed time would let prompts wait while few are answered."""

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
    """Learns how long a unit of prefill takes, and says how many of them take ``seconds``, or `_SHARE` of a step.

    ``most`` bounds the answer from above, and is the answer until a step has been seen.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._fixed = 0.0
        self._per_unit = 0.0

    def observe(self, prefill_units: float, decode_units: float, seconds: float) -> None:
        """A step with so much prefill, and so much decoding beside it, took so long.

        What a step takes whatever it holds is learnt from those that only decode. A unit of decoding is taken to cost
        what one of prefill does: if all that many decoding rows add were put down to a few tokens of prefill, the next
        step would have fewer of them, to which more would be put down, until nobody's prompt moves.
        """
        if prefill_units == 0:
            self._fixed = _towards(self._fixed, max(seconds - self._per_unit * decode_units, 0.0))
        else:
            taken = max(seconds - self._fixed, 0.0)
            self._per_unit = _towards(self._per_unit, taken / (prefill_units + decode_units))

    def budget(self, decode_units: float) -> float:
        """Units of prefill for a step that others wait for, beside so much decoding."""
        if self._per_unit == 0.0:
            return self._most
        decoding = self._fixed + self._per_unit * decode_units
        return min(self._most, max(self._seconds, _SHARE * decoding) / self._per_unit)


def _towards(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _LEARN * (value - mean)
