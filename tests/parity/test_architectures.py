"""Logits of every architecture within 1e-4 of `transformers` in float32, however the tokens are cut into steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from headrace.backends import Backend
from headrace.weights import Checkpoint, open_checkpoint
from tests.parity import tiny
from tests.parity.conftest import BACKENDS
from tests.parity.steps import Rows, blocks_for, compute, plan_row, run

TOLERANCE = 1e-4
NUM_BLOCKS = 24
Written = tuple[Callable[[tuple[int, ...]], Rows], Checkpoint, tiny.Architecture]


@dataclass(frozen=True)
class Case:
    """One architecture on one backend."""

    theirs: Callable[[tuple[int, ...]], Rows]
    """The logprobs that `transformers` gives, remembered."""
    backend: Backend
    tokens: list[int]
    other: list[int]
    """As long as ``tokens``; the same up to the last block and different in it."""

    alone: Rows
    """Our logprobs of ``tokens`` prefilled at once, with nothing beside them."""
    other_alone: Rows

    def expected(self, tokens: list[int]) -> Rows:
        return self.theirs(tuple(tokens))


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    architecture = tiny.ARCHITECTURES[request.param]
    model = tiny.build(architecture.config())
    path = tmp_path_factory.mktemp("model")
    tiny.save(model, path)
    theirs = functools.cache(functools.partial(tiny.logprobs, model))
    return theirs, open_checkpoint(path, max_model_len=architecture.max_model_len), architecture


@pytest.fixture(scope="module", params=BACKENDS)
def case(request: pytest.FixtureRequest, written: Written) -> Iterator[Case]:
    theirs, checkpoint, architecture = written
    backend = BACKENDS[request.param](checkpoint, architecture.max_model_len)
    backend.allocate_kv(NUM_BLOCKS)
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, tiny.VOCAB, architecture.prompt_length).tolist()
    shared = (len(tokens) - 1) // 16 * 16
    other = tokens[:shared] + [(t + 1) % tiny.VOCAB for t in tokens[shared:]]
    yield Case(theirs, backend, tokens, other, *(compute(backend, t, [0, 1, 2]) for t in (tokens, other)))
    backend.close()


def assert_close(ours: Rows, expected: Rows) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


def test_prefill_at_once(case: Case) -> None:
    assert_close(case.alone, case.expected(case.tokens))
    np.testing.assert_array_equal(compute(case.backend, case.tokens, [23, 9, 12]), case.alone)


@pytest.mark.parametrize("chunks", [[7, 16, 1, 100], [16, 16, 100], [29, 1, 1, 100]], ids=str)
def test_prefill_in_chunks(case: Case, chunks: list[int]) -> None:
    ours = compute(case.backend, case.tokens, [5, 9, 7], chunks)
    assert_close(ours, case.expected(case.tokens))
    np.testing.assert_array_equal(ours, case.alone)


def test_token_by_token(case: Case) -> None:
    ours = compute(case.backend, case.tokens, [2, 4, 3], [1] * len(case.tokens))
    assert_close(ours, case.expected(case.tokens))
    np.testing.assert_array_equal(ours, case.alone)


def test_prefix_hit(case: Case) -> None:
    """A second sequence starts from blocks that the first one computed."""
    compute(case.backend, case.tokens, [6, 7, 8])
    shared = (len(case.tokens) - 1) // 16
    ours = compute(case.backend, case.other, [*[6, 7, 8][:shared], 9, 10], start=16 * shared)
    assert_close(ours, case.expected(case.other)[16 * shared :])
    np.testing.assert_array_equal(ours, case.other_alone[16 * shared :])


def test_preemption(case: Case) -> None:
    """Its blocks are given to another sequence half way; it is computed again in other blocks, and goes on."""
    half = len(case.tokens) // 2
    compute(case.backend, case.tokens[:half], [1, 2, 3])
    compute(case.backend, [7] * len(case.tokens), [3, 2, 1])
    ours = compute(case.backend, case.tokens, [2, 5, 1], [half, 3, 100])
    assert_close(ours, case.expected(case.tokens))
    np.testing.assert_array_equal(ours, case.alone)


def test_copy_on_write(case: Case) -> None:
    """A block is copied, and the two sequences go different ways in their own copies."""
    blocks, last = [4, 5, 6][: blocks_for(len(case.tokens))], blocks_for(len(case.tokens)) - 1
    cut = 16 * last + 1
    compute(case.backend, case.tokens[:cut], blocks)
    fork = [*blocks[:last], 13]
    mine = [*case.tokens[:cut], *case.other[cut:]]
    vocab = case.backend.vocab_size
    rows = [
        plan_row(case.tokens, cut, len(case.tokens) - cut, blocks, vocab),
        plan_row(mine, cut, len(mine) - cut, fork, vocab),
    ]
    ours, theirs = run(case.backend, rows, copies=((blocks[last], 13),))
    assert_close(ours, case.expected(case.tokens)[cut:])
    assert_close(theirs, case.expected(mine)[cut:])


def test_in_a_batch(case: Case) -> None:
    """A decode, the end of a prefill and a whole prefill in one step give what each gives alone, bit for bit."""
    vocab, n = case.backend.vocab_size, len(case.tokens)
    compute(case.backend, case.tokens[: n - 1], [14, 15, 16])
    compute(case.backend, case.other[:11], [17, 18, 19])
    rows = [
        plan_row(case.tokens, n - 1, 1, [14, 15, 16], vocab),
        plan_row(case.other, 11, n - 11, [17, 18, 19], vocab),
        plan_row(case.tokens, 0, n, [20, 21, 22], vocab),
    ]
    decode, middle, whole = run(case.backend, rows)
    np.testing.assert_array_equal(whole, case.alone)
    np.testing.assert_array_equal(decode, case.alone[-1:])
    np.testing.assert_array_equal(middle, case.other_alone[11:])
    assert_close(whole, case.expected(case.tokens))


def test_a_sharded_model_is_the_same_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = tiny.build(tiny.llama())
    path = tmp_path_factory.mktemp("sharded")
    tiny.save(model, path, shard_size="100KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    backend = BACKENDS["reference"](open_checkpoint(path, max_model_len=64), 64)
    backend.allocate_kv(2)
    tokens = list(range(5, 25))
    assert_close(compute(backend, tokens, [0, 1]), tiny.logprobs(model, tokens))
