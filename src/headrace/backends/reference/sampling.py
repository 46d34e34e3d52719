"""Choosing one token from one row of logits, as plainly as NumPy can say it: full sorts, float64 sums.

The steps and their order are those of `native/sampler.h`, which says where they come from:
allowed ids → bias → mask → green list → penalties → (logprobs) → arg-max, or temperature → min-p → top-k → top-p →
draw.
Tokens are ordered by (logit descending, id ascending) wherever an order matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.types import RowSampling, TokenLogprobs
from headrace.watermark import green_hash

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy (vLLM's bound)."""


class SamplingError(ValueError):
    """No token can be chosen from this row; the message says why, for the request that it belongs to."""


class NothingToChoose(SamplingError):
    """The row's own settings ban every token."""


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10: four 32-bit words from four of counter and two of key.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c3 ^ k1, a & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1), 53 bits of it, that decides the token at ``position`` of a sequence with ``seed``."""
    seed, position = seed % 2**64, position % 2**64
    word = philox((position % 2**32, position >> 32, 0, 0), (seed % 2**32, seed >> 32))
    return ((word[0] >> 5) * 2**26 + (word[1] >> 6)) / 2**53


def adjusted(logits: Floats, sampling: RowSampling) -> Floats:
    """The logits [vocab] after allowed ids, bias, mask, green list and penalties, each rounded to float32.

    Raises:
        SamplingError: a logit is NaN or +inf, or no token is left.
    """
    z = logits.astype(np.float32, copy=True)
    if sampling.allowed is not None:
        banned = np.ones(len(z), dtype=bool)
        banned[list(sampling.allowed)] = False
        z[banned] = -np.inf
    for token, bias in sampling.bias.items():
        z[token] = np.float32(float(z[token]) + bias)
    if sampling.mask is not None:
        bits = np.unpackbits(np.frombuffer(sampling.mask, np.uint8), bitorder="little")[: len(z)].astype(bool)
        z[~np.pad(bits, (0, len(z) - len(bits)))] = -np.inf
    if sampling.green is not None:
        seed, below = sampling.green.seed, sampling.green.below
        green = np.array([green_hash(seed, token) < below for token in range(len(z))])
        z[green] = (z[green].astype(np.float64) + sampling.green.delta).astype(np.float32)
    output = Counter(sampling.history[sampling.prompt_length :])
    for token in set(sampling.history):
        x = float(z[token])
        x = x / sampling.repetition_penalty if x > 0 else x * sampling.repetition_penalty
        if output[token]:
            x -= sampling.frequency_penalty * output[token] + sampling.presence_penalty
        z[token] = np.float32(x)
    if np.isnan(z).any() or z.max() == np.inf:
        raise SamplingError("the model produced a logit that is NaN or infinite")
    if z.max() == -np.inf:
        raise NothingToChoose("logit_bias, allowed_token_ids and what the answer is held to leave no token to choose")
    return z


def order(z: Floats) -> Ids:
    """All ids, by logit descending, lowest id first among equals."""
    return np.lexsort((np.arange(len(z)), -z))


def weights(z: Floats, temperature: float) -> Doubles:
    """Probabilities at ``temperature``, up to a factor; the most likely token has 1."""
    w = np.zeros(len(z), np.float64)
    finite = z > -np.inf
    w[finite] = np.exp(((z[finite] - z.max()) * np.float32(1.0 / temperature)).astype(np.float64))
    return w


def kept(z: Floats, sampling: RowSampling) -> Ids:
    """The ids that min-p, top-k and top-p leave, in order. ``temperature`` is not zero."""
    ids = order(z)
    ids = ids[z[ids] > -np.inf]
    if sampling.min_p > 0.0:
        bound = float(z.max()) + sampling.temperature * float(np.log(sampling.min_p))
        ids = ids[z[ids].astype(np.float64) >= bound]
    if sampling.top_k > 0:
        ids = ids[: sampling.top_k]
    if sampling.top_p < 1.0:
        cumulative = np.cumsum(weights(z, sampling.temperature)[ids])
        reaches = int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1]))
        ids = ids[: reaches + 1]
    return ids


def choose(z: Floats, sampling: RowSampling) -> int:
    """The token that adjusted logits give: the cumulative distribution inverted, in id order, at `uniform`."""
    if sampling.temperature < GREEDY_BELOW:
        return int(np.argmax(z))
    ids = np.sort(kept(z, sampling))
    cumulative = np.cumsum(weights(z, sampling.temperature)[ids])
    drawn = uniform(sampling.seed, sampling.position) * cumulative[-1]
    return int(ids[np.searchsorted(cumulative, drawn, side="right")])


def token_logprobs(z: Floats, token: int, count: int) -> TokenLogprobs:
    """Logprob and rank of ``token``, with the ``count`` most likely tokens that are not banned."""
    ids = order(z)
    log_total = float(z.max()) + float(np.log(weights(z, 1.0).sum()))
    logprobs = (z.astype(np.float64) - log_total).astype(np.float32)
    top = tuple((int(i), float(logprobs[i])) for i in ids[:count] if z[i] > -np.inf)
    return TokenLogprobs(token, float(logprobs[token]), int(np.flatnonzero(ids == token)[0]) + 1, top)


def sample(logits: Floats, sampling: RowSampling) -> tuple[int, TokenLogprobs | None]:
    """Choose one token, with its logprobs if they are asked for.

    Raises:
        SamplingError: as `adjusted`.
    """
    z = adjusted(logits, sampling)
    token = choose(z, sampling)
    if sampling.logprobs is None:
        return token, None
    return token, token_logprobs(z, token, sampling.logprobs)
