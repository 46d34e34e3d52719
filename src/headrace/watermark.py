"""A mark in the choice of words: green lists.

At each position a pseudo-random function of (key, previous token, token) calls a share ``gamma`` of the vocabulary
green, and ``delta`` is added to the logits of green tokens. A text of n tokens that knows nothing of the key has about
gamma · n green ones; one made with the mark has many more. Whoever has the key and the tokenizer can count them.
Source: Kirchenbauer et al., "A watermark for large language models", ICML 2023.

Unlike the paper's, the green list is no permutation cut off at gamma · vocabulary but a hash of each token below a
bound, so that one token can be judged without all the others. `native/sampler_passes.h` has the same hash.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from msgspec import Struct

_MASK = (1 << 64) - 1


class Watermark(Struct, frozen=True):
    """How answers are marked. ``gamma`` lies between 0 and 1; ``delta`` is in logits: 2 is plain, 5 hurts the text."""

    key: int
    gamma: float = 0.5
    delta: float = 2.0


PUBLIC = Watermark(15_485_863)
"""With the paper's key, for those who have none of their own: whoever knows it can find the mark, or forge it."""


class GreenList(Struct, frozen=True):
    """A `Watermark` at one position: token ``t`` is green if `green_hash` of (seed, t) is less than ``below``."""

    seed: int
    below: int
    delta: float


class Verdict(Struct, frozen=True):
    """What was counted in a text: ``green`` of ``scored`` tokens."""

    scored: int
    green: int
    z: float
    """Standard deviations above what an unmarked text has."""
    p: float
    """The chance that an unmarked text has as many or more green tokens."""


def green_list(mark: Watermark, previous: int) -> GreenList:
    """The green tokens after the token ``previous``."""
    return GreenList(_seed(mark.key, previous), min(int(mark.gamma * 2**32), 2**32 - 1), mark.delta)


def green_hash(seed: int, token: int) -> int:
    """32 bits of (seed, token)."""
    x = token + seed & 0xFFFFFFFF
    for more in (seed >> 32, 0):
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        x ^= x >> 16
        x = x + more & 0xFFFFFFFF
    return x


def judge(mark: Watermark, tokens: Sequence[int]) -> Verdict:
    """Count the green tokens. Each pair of neighbours counts once: what is repeated says nothing new."""
    pairs = set(itertools.pairwise(tokens))
    green = 0
    for previous, token in pairs:
        listed = green_list(mark, previous)
        green += green_hash(listed.seed, token) < listed.below
    scored = len(pairs)
    if not scored:
        return Verdict(0, 0, 0.0, 1.0)
    spread = math.sqrt(scored * mark.gamma * (1.0 - mark.gamma))
    z = (green - mark.gamma * scored) / spread
    return Verdict(scored, green, z, _tail(scored, green, mark.gamma))


def _tail(n: int, k: int, chance: float) -> float:
    """The probability of k or more of n, exactly: the sum of the binomial's terms, in logarithms."""
    head = math.lgamma(n + 1)
    terms = [
        head - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(chance) + (n - i) * math.log1p(-chance)
        for i in range(k, n + 1)
    ]
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def _seed(key: int, previous: int) -> int:
    """64 bits of (key, previous token): two rounds of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = key & _MASK
    for word in (previous + 1, 0):
        x = x + word * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15 & _MASK
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
        x ^= x >> 31
    return x
