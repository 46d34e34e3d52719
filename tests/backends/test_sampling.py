"""The native sampler against the NumPy one: same sets, same tokens, same logprobs, and the right distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.backends.reference import sampling as reference
from headrace.types import RowSampling, TokenLogprobs
from headrace.watermark import GreenList, green_hash
from tests.backends.native_sampler import LIBRARY, NativeError, NativeSampler

Floats = NDArray[Any]
VOCABS = (1, 2, 15, 127, 128, 129, 1000, 4096, 5003)
SUM_ERROR = 2e-6
"""Relative error allowed to a float32 sum of weights: a choice closer than this to a boundary may go either way."""


@pytest.fixture(scope="module")
def native() -> Callable[[int], NativeSampler]:
    if not LIBRARY.exists():
        pytest.fail(f"{LIBRARY.name} is not built: cmake -S native -B build/dev && cmake --build build/dev")
    samplers: dict[int, NativeSampler] = {}
    return lambda vocab: samplers.setdefault(vocab, NativeSampler(LIBRARY, vocab))


def random_logits(rng: np.random.Generator, vocab: int) -> Floats:
    kind = rng.integers(6)
    if kind == 0:  # flat
        return np.zeros(vocab, np.float32)
    if kind == 1:  # many ties
        return rng.integers(-3, 4, vocab).astype(np.float32)
    if kind == 2:  # one spike
        logits = rng.normal(0, 1, vocab)
        logits[rng.integers(vocab)] = 40
        return logits.astype(np.float32)
    if kind == 3:  # huge values
        return (rng.normal(0, 1, vocab) * 10.0 ** rng.integers(-30, 30)).astype(np.float32)
    logits = rng.normal(0, rng.choice([0.1, 1, 3, 10]), vocab).astype(np.float32)
    if kind == 4:
        logits[rng.random(vocab) < 0.3] = -np.inf
        logits[rng.integers(vocab)] = 1.0
    return logits


def random_mask(rng: np.random.Generator, vocab: int) -> bytes:
    """A word too few, just enough, or too many, with few or many bits."""
    words = max(0, (vocab + 31) // 32 + int(rng.integers(-1, 3)))
    bits = rng.integers(0, 2**32, words, dtype=np.uint32)
    for _ in range(int(rng.integers(3))):
        bits &= rng.integers(0, 2**32, words, dtype=np.uint32)
    bits[rng.random(words) < 0.3] = rng.choice([0, 2**32 - 1])
    return bits.tobytes()


def random_sampling(rng: np.random.Generator, vocab: int) -> RowSampling:
    history = rng.integers(0, vocab, rng.integers(0, 60)).tolist()
    biased = rng.integers(0, vocab, rng.integers(0, 8)).tolist() if rng.random() < 0.3 else []
    penalised = rng.random() < 0.4
    return RowSampling(
        temperature=float(rng.choice([0.0, 1e-6, 1e-4, 0.1, 0.7, 1.0, 1.5, 5.0, 1e4, 1e30, 1e300])),
        top_k=int(rng.choice([0, 0, 1, 2, 5, 50, 200, vocab, vocab + 7])),
        top_p=float(rng.choice([1.0, 1.0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 1e-12])),
        min_p=float(rng.choice([0.0, 0.0, 1e-9, 0.01, 0.2, 1.0])),
        repetition_penalty=float(rng.choice([0.5, 1.0, 1.3])) if penalised else 1.0,
        presence_penalty=float(rng.choice([-2, 0, 0.7])) if penalised else 0.0,
        frequency_penalty=float(rng.choice([-2, 0, 0.3])) if penalised else 0.0,
        seed=int(rng.integers(-(2**63), 2**63 - 1)),
        position=int(rng.choice([0, 1, 4095, 2**31, 2**40])),
        history=history,
        prompt_length=int(rng.integers(0, len(history) + 1)),
        bias={t: float(rng.choice([-math.inf, -100, -1, 2.5, 100])) for t in biased},
        allowed=rng.integers(0, vocab, rng.integers(1, 30)).tolist() if rng.random() < 0.15 else None,
        logprobs=int(rng.choice([0, 1, 5, 20, vocab])) if rng.random() < 0.4 else None,
        mask=random_mask(rng, vocab) if rng.random() < 0.3 else None,
        green=GreenList(int(rng.integers(2**63)), int(rng.integers(2**32)), 2.0) if rng.random() < 0.2 else None,
    )


def near_boundary(z: Floats, sampling: RowSampling, token: int) -> bool:
    """Whether the drawn point, or the top-p bound, is so close to a step of the distribution that rounding decides."""
    ids = reference.kept(z, sampling)
    w = reference.weights(z, sampling.temperature)
    if sampling.top_p < 1.0:
        untruncated = RowSampling(temperature=sampling.temperature, top_k=sampling.top_k, min_p=sampling.min_p)
        every = np.cumsum(w[reference.kept(z, untruncated)])
        if abs(every / every[-1] - sampling.top_p).min() < SUM_ERROR:
            return True
    cumulative = np.cumsum(w[np.sort(ids)]) / w[ids].sum()
    return bool(abs(cumulative - reference.uniform(sampling.seed, sampling.position)).min() < SUM_ERROR)


def assert_same_logprobs(ours: TokenLogprobs | None, expected: TokenLogprobs | None) -> None:
    assert (ours is None) == (expected is None)
    if ours is None or expected is None:
        return
    assert (ours.token, ours.rank) == (expected.token, expected.rank)
    assert [t for t, _ in ours.top] == [t for t, _ in expected.top]
    mine, theirs = ([x.logprob, *(p for _, p in x.top)] for x in (ours, expected))
    np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("vocab", VOCABS)
def test_same_tokens_and_logprobs(native: Callable[[int], NativeSampler], vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    cases, excused = 700, 0
    for _ in range(cases):
        logits, sampling = random_logits(rng, vocab), random_sampling(rng, vocab)
        try:
            expected, expected_logprobs = reference.sample(logits, sampling)
        except reference.SamplingError as error:
            with pytest.raises(NativeError, match="all banned" if "no token" in str(error) else "not finite"):
                native(vocab).sample(logits, sampling)
            continue
        token, logprobs = native(vocab).sample(logits, sampling)
        if token != expected and near_boundary(reference.adjusted(logits, sampling), sampling, token):
            excused += 1
            continue
        assert token == expected, sampling
        assert_same_logprobs(logprobs, expected_logprobs)
    assert excused <= cases // 20


@pytest.mark.parametrize("vocab", VOCABS)
def test_same_sets(native: Callable[[int], NativeSampler], vocab: int) -> None:
    rng = np.random.default_rng(1000 + vocab)
    excused = 0
    for _ in range(500):
        logits, sampling = random_logits(rng, vocab), random_sampling(rng, vocab)
        ours = native(vocab).kept(logits, sampling)
        if sampling.temperature < reference.GREEDY_BELOW:
            # The cut is the arg-max itself: ties before it have a lower id, and there are none.
            assert ours == {int(np.argmax(logits))}
            continue
        expected = set(reference.kept(logits, sampling).tolist())
        if ours != expected and near_boundary(logits, sampling, 0):
            excused += 1
            continue
        assert ours == expected, sampling
    assert excused <= 40


def test_large_vocabularies(native: Callable[[int], NativeSampler]) -> None:
    rng = np.random.default_rng(7)
    for vocab in (49_152, 262_144):
        for scale, temperature, top_k, top_p in (
            (3, 1.0, 0, 0.95),
            (0.1, 2.0, 0, 0.95),
            (3, 1.0, 20_000, 1.0),
            (3, 1.0, 40, 0.9),
            (3, 0.8, 0, 1.0),
        ):
            logits = rng.normal(0, scale, vocab).astype(np.float32)
            for position in range(3):
                sampling = RowSampling(temperature, top_k, top_p, seed=5, position=position, logprobs=20)
                token, logprobs = native(vocab).sample(logits, sampling)
                expected, expected_logprobs = reference.sample(logits, sampling)
                if token != expected:
                    assert near_boundary(logits, sampling, token)
                    continue
                assert_same_logprobs(logprobs, expected_logprobs)


def chi_square(observed: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """How many standard deviations Pearson's statistic lies above its mean (Wilson and Hilferty's approximation)."""
    expected = probabilities * observed.sum()
    freedom = len(expected) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    excess: float = (statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))
    return excess / math.sqrt(2 / (9 * freedom))


@pytest.mark.parametrize(
    "sampling",
    [
        RowSampling(temperature=1.0),
        RowSampling(temperature=0.7, top_k=12),
        RowSampling(temperature=1.3, top_p=0.8),
        RowSampling(temperature=1.0, min_p=0.1),
    ],
    ids=["plain", "top-k", "top-p", "min-p"],
)
def test_distribution(native: Callable[[int], NativeSampler], sampling: RowSampling) -> None:
    logits = np.random.default_rng(3).normal(0, 1, 40).astype(np.float32)
    ids = np.sort(reference.kept(logits, sampling))
    probabilities = reference.weights(logits, sampling.temperature)[ids]
    probabilities /= probabilities.sum()
    for by_position in (True, False):  # one sequence's successive positions; one position over successive seeds
        draws = []
        for i in range(20_000):
            seed, position = (11, i) if by_position else (i, 11)
            row = RowSampling(
                sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, seed=seed, position=position
            )
            draws.append(native(40).sample(logits, row)[0])
        counts = np.bincount(draws, minlength=40)
        assert counts.sum() == counts[ids].sum(), "a token outside the kept set was drawn"
        assert chi_square(counts[ids], probabilities) < 4.0


def test_philox_known_answers() -> None:
    """Vectors of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds)."""
    ones = 0xFFFFFFFF
    assert reference.philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert reference.philox((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
    assert reference.philox(*pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_penalties_by_hand(native: Callable[[int], NativeSampler]) -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.0], np.float32)
    sampling = RowSampling(
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        history=[0, 1, 1, 1],
        prompt_length=2,
        logprobs=4,
    )
    z = np.array([1.0, -4.0 - 0.5 - 2 * 0.25, 1.0, 0.0])  # token 0 only in the prompt, token 1 twice in the output
    logprobs = z - np.log(np.exp(z).sum())
    _, ours = native(4).sample(logits, sampling)
    assert ours is not None
    assert [t for t, _ in ours.top] == [0, 2, 3, 1]
    np.testing.assert_allclose([p for _, p in ours.top], logprobs[[0, 2, 3, 1]], atol=1e-6)


def test_scratch_is_left_clean(native: Callable[[int], NativeSampler]) -> None:
    """One request's penalties and bans say nothing about the next row that uses the same scratch."""
    logits = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)
    plain = RowSampling(presence_penalty=1.0, logprobs=1000)
    before = native(1000).sample(logits, plain)
    native(1000).sample(logits, RowSampling(frequency_penalty=1.0, history=list(range(0, 1000, 3)), allowed=[1, 1, 5]))
    assert native(1000).sample(logits, plain) == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 127, 128, 128 * 7 + 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_not_finite(
    native: Callable[[int], NativeSampler], value: float, place: int, temperature: float
) -> None:
    logits = np.zeros(900, np.float32)
    logits[place] = value
    with pytest.raises(NativeError, match="not finite"):
        native(900).sample(logits, RowSampling(temperature=temperature))
    with pytest.raises(NativeError, match="not finite"):
        native(900).token_logprobs(logits, 0, 1)
    with pytest.raises(reference.SamplingError, match="NaN"):
        reference.sample(logits, RowSampling(temperature=temperature))


@pytest.mark.parametrize(
    ("sampling", "error"),
    [
        (RowSampling(bias=dict.fromkeys(range(9), -math.inf)), "all banned"),
        (RowSampling(allowed=[]), "all banned"),
        (RowSampling(allowed=[3], bias={3: -math.inf}), "all banned"),
        (RowSampling(allowed=[9]), "bad id"),
        (RowSampling(bias={-1: 1.0}), "bad id"),
        (RowSampling(presence_penalty=1.0, history=[0, 9]), "bad id"),
        (RowSampling(temperature=-1.0), "bad parameter"),
        (RowSampling(temperature=math.nan), "bad parameter"),
        (RowSampling(top_p=0.0), "bad parameter"),
        (RowSampling(min_p=1.5), "bad parameter"),
        (RowSampling(top_k=-1), "bad parameter"),
        (RowSampling(repetition_penalty=0.0), "bad parameter"),
        (RowSampling(bias={1: math.nan}), "bad parameter"),
        (RowSampling(bias={1: math.inf}), "bad parameter"),
    ],
)
def test_refusals(native: Callable[[int], NativeSampler], sampling: RowSampling, error: str) -> None:
    with pytest.raises(NativeError, match=error):
        native(9).sample(np.zeros(9, np.float32), sampling)


def test_token_logprobs(native: Callable[[int], NativeSampler]) -> None:
    rng = np.random.default_rng(2)
    for vocab in VOCABS:
        logits = rng.normal(0, 3, vocab).astype(np.float32)
        for token in {0, vocab // 2, vocab - 1}:
            for count in (0, 3, vocab):
                ours = native(vocab).token_logprobs(logits, token, count)
                assert_same_logprobs(ours, reference.token_logprobs(logits, token, count))


def test_a_mask_bans_all_but_its_tokens(native: Callable[[int], NativeSampler]) -> None:
    logits = np.arange(100, dtype=np.float32)
    mask = bytearray(16)
    for token in (3, 40, 63):
        mask[token >> 3] |= 1 << (token & 7)
    held = RowSampling(mask=bytes(mask), logprobs=5)
    for sample in (native(100).sample, reference.sample):
        token, known = sample(logits, held)
        assert token == 63
        assert known is not None
        assert [i for i, _ in known.top] == [63, 40, 3], "what is banned has no probability"
    drawn = {native(100).sample(logits * 0, RowSampling(1.0, mask=bytes(mask), seed=s))[0] for s in range(60)}
    assert drawn == {3, 40, 63}
    with pytest.raises(NativeError, match="all banned"):
        native(100).sample(logits, RowSampling(mask=bytes(16)))
    with pytest.raises(NativeError, match="all banned"):
        native(100).sample(logits, RowSampling(mask=b""))


def test_the_green_list_is_the_same_in_python_and_in_the_library(native: Callable[[int], NativeSampler]) -> None:
    for seed in (0, 1, 2**32, 2**64 - 1, 0x0123456789ABCDEF):
        listed = GreenList(seed, 2**31, 100.0)
        green = {token for token in range(1000) if green_hash(seed, token) < 2**31}
        _, known = native(1000).sample(np.zeros(1000, np.float32), RowSampling(green=listed, logprobs=len(green)))
        assert known is not None
        assert {token for token, _ in known.top} == green
        assert 400 < len(green) < 600
