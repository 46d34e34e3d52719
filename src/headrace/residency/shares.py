"""How much KV cache each model gets when several share one budget of memory. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model takes, in bytes."""

    fixed: int
    """Weights and activations."""
    floor: int
    """The least KV cache that is of use: one context."""
    most: int
    """The KV cache beyond which more is of no use."""


def kv_shares(budget: int, models: Sequence[Footprint]) -> list[int]:
    """Each model's KV cache in bytes.

    As many models as fit together, the largest first, are counted as being in memory. What they leave of ``budget``
    is cut into one part for each of them and one more, which stays free: for a new version beside the old one, and for
    the machine's other programs. Every model gets a part; never less than its floor, never more than its most. With
    one model that is half of what its weights leave.

    A model that does not even fit alone gets its floor: loading it is refused elsewhere, with the numbers.
    """
    together, taken = 0, 0
    for model in sorted(models, key=lambda each: each.fixed + each.floor, reverse=True):
        if taken + model.fixed + model.floor <= budget:
            together += 1
            taken += model.fixed
    part = max(budget - taken, 0) // (together + 1)
    shares = [min(max(part, each.floor), max(each.most, each.floor)) for each in models]
    return [min(share, max(budget - each.fixed, each.floor)) for share, each in zip(shares, models, strict=True)]
