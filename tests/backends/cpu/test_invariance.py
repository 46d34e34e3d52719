"""The promise: a row's result is bit for bit its own, whatever it is computed with, cut into, or stored in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.backends.cpu.backend import CpuBackend
from headrace.types import PlanRow
from headrace.weights.spec import ModelSpec
from tests.backends.cpu.conftest import Loader
from tests.backends.cpu.models import BASE, all_logprobs, blocks_for, chunk_rows, logprobs_of, prompt, whole, with_heads

SPECS = {
    "plain": BASE,
    "window": replace(BASE, layer_window=(20, 70)),
    "gemma": replace(BASE, post_norms=True, qk_norm=True, layer_window=(70, None)),
    "80 wide": with_heads(6, 2, 80),
    "sharp": replace(BASE, attention_scale=40.0),  # scores that need another base than 0
}


def together(
    backend: CpuBackend, spec: ModelSpec, lengths: list[int], cuts: list[list[int]], shuffle: int
) -> list[np.ndarray]:
    """Runs all sequences at once, a chunk of each in a step, in interleaved blocks; the last logprobs of each."""
    n, rng = len(lengths), np.random.default_rng(shuffle)
    queues = [
        chunk_rows(spec, prompt(spec, length, i), cut, blocks_for(length, i, n), i)
        for i, (length, cut) in enumerate(zip(lengths, cuts, strict=True))
    ]
    last = [np.empty(0)] * n
    while any(queues):
        ready = [queue for queue in queues if queue]
        rows = [ready[i].pop(0) for i in rng.permutation(len(ready))]
        for row, values in zip(rows, logprobs_of(backend, rows), strict=True):
            last[row.sequence] = values
    return last


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[list[int]], int]:
    lengths = draw(st.lists(st.integers(1, 100), min_size=1, max_size=6))
    cuts = [sorted(draw(st.sets(st.integers(1, length - 1), max_size=4))) if length > 1 else [] for length in lengths]
    return lengths, cuts, draw(st.integers(0, 99))


@pytest.mark.parametrize("name", SPECS)
def test_batch_chunks_and_blocks_do_not_matter(name: str, make: Loader) -> None:
    spec = SPECS[name]
    backend = make(spec)

    @settings(max_examples=8, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(batches())
    def check(batch: tuple[list[int], list[list[int]], int]) -> None:
        lengths, cuts, shuffle = batch
        for i, got in enumerate(together(backend, spec, lengths, cuts, shuffle)):
            assert np.array_equal(got, whole(backend, spec, prompt(spec, lengths[i], i), first=40))

    check()


@pytest.mark.parametrize("ffn", [160, 712, 8328])  # sums over k in one part, in two, and with many columns a part
def test_any_number_of_rows(ffn: int, make: Loader) -> None:
    """Decode steps of 1 to 70 rows: every row is what it is alone."""
    spec = replace(BASE, ffn_size=ffn)
    backend = make(spec, 80)
    rows = []
    for i in range(70):
        tokens = prompt(spec, 2 + i % 13, i)
        backend_rows = chunk_rows(spec, tokens, [len(tokens) - 1], (i,), i)
        logprobs_of(backend, backend_rows[:1])
        rows.append(backend_rows[1])
    alone = [logprobs_of(backend, [row])[0] for row in rows]
    for n in [*range(2, 36), 47, 48, 49, 63, 64, 65, 70]:
        for got, want in zip(logprobs_of(backend, rows[-n:]), alone[-n:], strict=True):
            assert np.array_equal(got, want)


@pytest.mark.parametrize("window", [None, 530])
def test_long_contexts_cut_into_splits_or_not(make: Loader, window: int | None) -> None:
    """Alone, a long context is cut between the threads; in a batch of many it is not. The bits are the same."""
    spec = replace(BASE, layer_window=(window, None))
    backend = make(spec, 128)
    tokens = prompt(spec, 1100)
    blocks = blocks_for(1100)
    chunks = chunk_rows(spec, tokens, [1099], blocks)
    logprobs_of(backend, chunks[:1])
    short = [PlanRow(1 + i, (i,), 0, (80 + i,), all_logprobs(spec)) for i in range(12)]
    long = [PlanRow(20 + i, tokens[1099:], 1099, (*blocks[:68], 100 + i), all_logprobs(spec)) for i in range(8)]
    for row in long:  # the last block of each is its own
        logprobs_of(backend, [PlanRow(0, tokens[1088:1099], 1088, row.blocks, all_logprobs(spec))])
    alone = logprobs_of(backend, chunks[1:])[0]
    assert np.array_equal(logprobs_of(backend, [*short, chunks[1]])[-1], alone)
    for got in logprobs_of(backend, long):
        assert np.array_equal(got, alone)
    assert np.array_equal(whole(backend, spec, tokens), alone)
    assert np.array_equal(whole(backend, spec, tokens, [255, 511, 512, 513, 1025, 1090]), alone)


def test_threads_do_not_matter(make: Loader) -> None:
    tokens = prompt(BASE, 50)
    one, two, five = (whole(make(BASE, 8, threads=n), BASE, tokens, [7, 8]) for n in (1, 2, 5))
    assert np.array_equal(one, two)
    assert np.array_equal(one, five)
