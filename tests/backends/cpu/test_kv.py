"""KV blocks: copies, shared prefixes, and what a block's former user leaves behind."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from headrace.types import Plan, PlanRow
from headrace.weights.spec import Tensor
from tests.backends.cpu.conftest import Loader
from tests.backends.cpu.models import BASE, all_logprobs, checkpoint, logprobs_of, prompt, tensor, whole


def test_copies_are_applied_in_order_before_the_rows(make: Loader) -> None:
    backend = make(BASE, 16)
    tokens = prompt(BASE, 30)
    want = whole(backend, BASE, tokens)  # blocks 0 and 1
    backend.run(Plan((PlanRow(0, (1,), 0, (9,)),), copies=((1, 2), (2, 3), (0, 4))))
    rows = [PlanRow(0, tokens[29:], 29, (4, 3), all_logprobs(BASE))]
    assert np.array_equal(logprobs_of(backend, rows)[0], want)
    chained = Plan((PlanRow(0, tokens[29:], 29, (7, 6), all_logprobs(BASE)),), copies=((0, 7), (3, 5), (5, 6)))
    result = backend.run(chained).rows[0]
    assert result.logprobs is not None
    assert result.logprobs.top[0][1] == want.max()


def test_a_shared_prefix_is_read_not_written(make: Loader) -> None:
    backend = make(BASE, 16)
    tokens = prompt(BASE, 40)
    other = (*tokens[:32], *prompt(BASE, 9, 7))
    whole(backend, BASE, tokens)
    shared = [PlanRow(1, other[32:], 32, (0, 1, 9), all_logprobs(BASE))]
    got = logprobs_of(backend, shared)[0]
    assert np.array_equal(got, whole(backend, BASE, other, first=10))
    again = [PlanRow(0, tokens[39:], 39, (0, 1, 2), all_logprobs(BASE))]
    assert np.array_equal(logprobs_of(backend, again)[0], whole(backend, BASE, tokens, first=10))


def poisoned(t: Tensor, row: int, value: float) -> Tensor:
    values = np.frombuffer(t.data, np.float32).reshape(t.shape).copy()
    values[row] = value
    return tensor(values)


def test_a_faulty_row_harms_no_other_then_or_later(make: Loader) -> None:
    """Token 5's embedding overflows: its row ends in an error, and the block that it used serves the next sequence."""
    cp = checkpoint(BASE)
    huge = {"embedding": poisoned(cp.tensors["embedding"], 5, 3e38)}
    backend = make(replace(cp, tensors={**cp.tensors, **huge}), 8)
    good = prompt(BASE, 10)
    good = tuple(6 if t == 5 else t for t in good)
    want = backend.run(Plan((PlanRow(0, good, 0, (0,), all_logprobs(BASE)),))).rows[0]
    bad = PlanRow(1, (1, 5) * 8, 0, (1,), all_logprobs(BASE))
    results = backend.run(Plan((bad, PlanRow(0, good, 0, (2,), all_logprobs(BASE)))))
    assert results.rows[0].error
    assert results.rows[0].token is None
    assert results.rows[1] == want
    assert backend.run(Plan((PlanRow(0, good, 0, (1,), all_logprobs(BASE)),))).rows[0] == want
