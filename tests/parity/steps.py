"""Reading whole rows of logits through the backend's contract, whatever the backend: all logprobs are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.backends import Backend
from headrace.types import BLOCK_SIZE, Plan, PlanRow, RowResult, RowSampling, TokenLogprobs

Rows = NDArray[np.float64]
"""Logprobs [tokens, vocab]."""


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)


def whole_row(logprobs: TokenLogprobs, vocab: int) -> NDArray[np.float64]:
    """All logprobs of one position, in id order; checks that they are ordered and that the rank is right."""
    row = np.full(vocab, np.nan)
    ids, values = zip(*logprobs.top, strict=True)
    assert list(values) == sorted(values, reverse=True)
    row[list(ids)] = values
    assert logprobs.top[logprobs.rank - 1] == (logprobs.token, logprobs.logprob)
    return row


def plan_row(tokens: Sequence[int], start: int, count: int, blocks: Sequence[int], vocab: int) -> PlanRow:
    """Compute ``tokens[start : start + count]`` and ask for the logprobs after every one of them."""
    after = [tokens[(i + 1) % len(tokens)] for i in range(start, start + count)]
    return PlanRow(
        sequence=1,
        tokens=tokens[start : start + count],
        start=start,
        blocks=blocks,
        sampling=RowSampling(logprobs=vocab),
        targets=after,
        target_logprobs=vocab,
    )


def rows_of(result: RowResult, row: PlanRow, vocab: int) -> Rows:
    """The logprobs after each token of a `plan_row`; checks the chosen token."""
    assert result.error is None
    assert result.logprobs is not None
    assert [t.token for t in result.target_logprobs] == list(row.targets)
    rows = np.array([whole_row(t, vocab) for t in result.target_logprobs])
    assert (whole_row(result.logprobs, vocab) == rows[-1]).all()
    assert result.token == rows[-1].argmax()
    return rows


def run(backend: Backend, rows: Sequence[PlanRow], copies: tuple[tuple[int, int], ...] = ()) -> list[Rows]:
    """One step; the logprobs of each of its rows."""
    results = backend.run(Plan(tuple(rows), copies)).rows
    return [rows_of(result, row, backend.vocab_size) for result, row in zip(results, rows, strict=True)]


def compute(
    backend: Backend, tokens: Sequence[int], blocks: Sequence[int], chunks: Iterable[int] | None = None, start: int = 0
) -> Rows:
    """Logprobs after ``tokens[start:]``, one step for each chunk (all in one by default)."""
    parts = []
    for count in chunks if chunks is not None else [len(tokens) - start]:
        count = min(count, len(tokens) - start)
        if count > 0:
            parts += run(backend, [plan_row(tokens, start, count, blocks, backend.vocab_size)])
        start += count
    return np.concatenate(parts)
