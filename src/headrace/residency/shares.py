"""How much KV cache each model gets when several share one budget of memory. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Footprint(Struct, frozen=True):
    """What one model takes, in bytes."""

    fixed: int
    """Weights and activations."""
    floor: int
    """The least KV cache that is of use: one context."""
    most: int
    """The KV cache beyond which more is of no use."""


def kv_shares(budget: int, models: Sequence[Footprint]) -> list[int]:
    """Each model's KV cache in bytes.

    As many models as fit together, the largest first, are counted as being in memory; the largest counts twice, if
    there is room: so a new version of any model can be loaded beside the old one. What they leave of ``budget`` is cut
    into equal parts, one for each of them. Every model gets a part; never less than its floor, never more than its
    most.

    A model that does not even fit alone gets its floor: loading it is refused elsewhere, with the numbers.
    """
    together, fixed, floors = 0, 0, 0
    largest_first = sorted(models, key=lambda each: each.fixed + each.floor, reverse=True)
    for model in (*largest_first, largest_first[0]):
        if fixed + floors + model.fixed + model.floor <= budget:
            together += 1
            fixed += model.fixed
            floors += model.floor
    part = max(budget - fixed, 0) // max(together, 1)
    shares = [min(max(part, each.floor), max(each.most, each.floor)) for each in models]
    return [min(share, max(budget - each.fixed, each.floor)) for share, each in zip(shares, models, strict=True)]
