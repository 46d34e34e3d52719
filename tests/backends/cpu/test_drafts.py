"""Tokens chosen after several positions of a row: each is, bit for bit, what a step of its own would have chosen."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import force_setattr, replace

from headrace.backends import Backend
from headrace.backends.cpu.abi import available_isas
from headrace.backends.cpu.backend import load
from headrace.backends.reference.backend import load as load_reference
from headrace.errors import EngineError
from headrace.types import GREEDY, Plan, PlanRow, RowResult, RowSampling
from tests.backends.cpu.conftest import Loader
from tests.backends.cpu.models import BASE, all_logprobs, blocks_for, checkpoint, prompt

LENGTH = 40

How = Callable[[int], RowSampling]
"""The sampling after so many tokens."""


def sampled(position: int) -> RowSampling:
    return RowSampling(temperature=1.0, seed=5, position=position, top_p=0.9, logprobs=3)


def mixed(position: int) -> RowSampling:
    return GREEDY if position % 3 else RowSampling(bias={7: 2.0}, logprobs=None if position % 2 else 1)


def one_by_one(backend: Backend, tokens: Sequence[int], start: int, how: How, blocks: Sequence[int]) -> list[RowResult]:
    """Each position's choice, from a step of its own."""
    backend.run(Plan((PlanRow(0, tokens[:start], 0, blocks),)))
    rows = [PlanRow(0, tokens[i : i + 1], i, blocks, how(i + 1)) for i in range(start, len(tokens))]
    return [backend.run(Plan((row,))).rows[0] for row in rows]


def together(tokens: Sequence[int], start: int, how: How, blocks: Sequence[int], sequence: int = 0) -> PlanRow:
    *earlier, last = [how(i + 1) for i in range(start, len(tokens))]
    return PlanRow(sequence, tokens[start:], start, blocks, last, earlier=earlier)


def choices(result: RowResult) -> list[RowResult]:
    return [*result.earlier, replace(result, earlier=())]


@pytest.mark.parametrize("how", [lambda _: GREEDY, sampled, mixed], ids=["greedy", "sampled", "mixed"])
def test_each_choice_is_its_own(how: How, make: Loader) -> None:
    backend = make(BASE, 64)
    batch, want = [], []
    for i, count in enumerate((1, 2, 5, 16, 17, 33)):
        tokens, blocks = prompt(BASE, LENGTH, i), blocks_for(LENGTH, 3 * i)
        want.append(one_by_one(backend, tokens, LENGTH - count, how, blocks))
        batch.append(together(tokens, LENGTH - count, how, blocks, i))
    tokens = prompt(BASE, 20, 9)
    other = PlanRow(9, tokens, 0, (40, 41), RowSampling(temperature=1.0, seed=1, logprobs=2), tokens[1:], 2)
    chunk = PlanRow(10, tokens, 0, (42, 43))
    beside = backend.run(Plan((other,))).rows[0]
    results = backend.run(Plan((batch[0], other, *batch[1:3], chunk, *batch[3:]))).rows
    assert results[1] == beside
    assert results[4] == RowResult()
    for got, expected in zip((results[0], *results[2:4], *results[5:]), want, strict=True):
        assert choices(got) == expected
    assert [choices(got) for got in backend.run(Plan(tuple(batch))).rows] == want


def generate(backend: Backend, count: int, how: How, draft: Callable[[list[int]], list[int]]) -> list[int]:
    """A text of ``count`` tokens, drafts checked on the way; what a wrong draft wrote is written over."""
    tokens = list(prompt(BASE, 10))
    blocks = blocks_for(10 + count + 16)
    backend.run(Plan((PlanRow(0, tokens[:-1], 0, blocks),)))
    end = len(tokens) + count
    while len(tokens) < end:
        guess = draft(tokens)
        row = together([*tokens, *guess], len(tokens) - 1, how, blocks)
        for choice, drafted in zip(choices(backend.run(Plan((row,))).rows[0]), [*guess, None], strict=True):
            assert choice.token is not None
            tokens.append(choice.token)
            if choice.token != drafted:
                break
    return tokens[:end]


@pytest.mark.parametrize("how", [lambda _: GREEDY, sampled], ids=["greedy", "sampled"])
def test_a_text_is_the_same_with_any_drafts(how: How, make: Loader) -> None:
    backend, rng = make(BASE, 16), random.Random(3)
    plain = generate(backend, 60, how, lambda tokens: [])

    def guess(tokens: list[int]) -> list[int]:
        right = plain[len(tokens) : len(tokens) + rng.randrange(12)]
        return [token if rng.random() < 0.8 else rng.randrange(99) for token in right]

    assert generate(backend, 60, how, guess) == plain


def surprise(seen: Counter[int], logprobs: dict[int, float]) -> float:
    """Chi-square of counts against probabilities, in standard deviations above its mean; rare tokens in one bin."""
    total = sum(seen.values())
    expected = {token: total * math.exp(logprob) for token, logprob in logprobs.items()}
    often = [token for token, count in expected.items() if count >= 5]
    bins = [(seen[token], expected[token]) for token in often]
    rest = total - sum(count for count, _ in bins), total - sum(count for _, count in bins)
    bins += [rest] if rest[1] >= 5 else []
    chi_square = sum((count - mean) ** 2 / mean for count, mean in bins)
    return (chi_square - (len(bins) - 1)) / math.sqrt(2 * (len(bins) - 1))


def test_the_distribution_is_the_models(make: Loader, dtype: str, isa: str) -> None:
    """Over many seeds, with one draft for all: the first token, and the second wherever the draft was right."""
    if dtype != "float32" or isa != available_isas()[0]:
        pytest.skip("bit for bit the same choices were shown above; once is enough for their statistics")
    backend = make(BASE, 128)
    tokens = prompt(BASE, 6)
    first = backend.run(Plan((PlanRow(0, tokens, 0, (0,), all_logprobs(BASE)),))).rows[0].logprobs
    assert first is not None
    draft = first.top[0][0]
    second = backend.run(Plan((PlanRow(0, (*tokens, draft), 0, (0,), all_logprobs(BASE)),))).rows[0].logprobs
    assert second is not None
    seen: tuple[Counter[int], Counter[int]] = Counter(), Counter()
    for start in range(0, 12_000, 120):
        rows = [
            PlanRow(
                i,
                (*tokens, draft),
                0,
                (i,),
                RowSampling(temperature=1.0, seed=start + i, position=7),
                earlier=(RowSampling(temperature=1.0, seed=start + i, position=6),),
            )
            for i in range(120)
        ]
        for result in backend.run(Plan(tuple(rows))).rows:
            one, two = (choice.token for choice in choices(result))
            assert one is not None
            assert two is not None
            seen[0][one] += 1
            if one == draft:
                seen[1][two] += 1
    assert sum(seen[1].values()) > 500
    assert surprise(seen[0], dict(first.top)) < 4
    assert surprise(seen[1], dict(second.top)) < 4
    assert surprise(seen[1], dict(first.top)) > 20, "the test can tell two distributions apart"


def test_the_reference_chooses_the_same_way() -> None:
    backend = load_reference(checkpoint(BASE), dtype="float32", max_model_len=64, max_batch_tokens=64)
    backend.allocate_kv(8)
    tokens, blocks = prompt(BASE, 12), (0, 1)
    want = one_by_one(backend, tokens, 6, mixed, blocks)
    assert choices(backend.run(Plan((together(tokens, 6, mixed, blocks),))).rows[0]) == want


def test_a_fault_is_its_positions_own(make: Loader) -> None:
    nothing = RowSampling(allowed=())
    tokens = (1, 2, 3)
    reference = load_reference(checkpoint(BASE), dtype="float32", max_model_len=64, max_batch_tokens=64)
    reference.allocate_kv(8)
    for backend in (make(BASE, 8), reference):
        for faulty in range(3):
            samplings = [nothing if i == faulty else sampled(i) for i in range(3)]
            row = PlanRow(0, tokens, 0, (0,), samplings[-1], earlier=samplings[:-1])
            found = choices(backend.run(Plan((row,))).rows[0])
            assert [choice.error is not None for choice in found] == [i == faulty for i in range(3)]


def test_malformed_rows_are_refused() -> None:
    for sampling, earlier in ((None, [GREEDY]), (GREEDY, [GREEDY] * 2)):
        with pytest.raises(ValueError, match="choices"):
            Plan((PlanRow(0, (1, 2), 0, (0,), sampling, earlier=earlier),))
    backend = load(checkpoint(BASE), dtype="float32", max_model_len=64, max_batch_tokens=20, threads=1)
    backend.allocate_kv(4)
    plan = Plan((PlanRow(0, (1, 2, 3), 0, (0,), GREEDY, earlier=[GREEDY, sampled(2)]),))
    wanted = backend.run(plan)
    force_setattr(plan.rows[0], "earlier", [GREEDY] * 3)
    with pytest.raises(EngineError, match="more choices than tokens"):
        backend.run(plan)
    force_setattr(plan.rows[0], "earlier", [GREEDY, replace(sampled(2), logprobs=100)])
    with pytest.raises(EngineError, match="bad number of logprobs"):
        backend.run(plan)
    force_setattr(plan.rows[0], "earlier", [GREEDY, sampled(2)])
    assert backend.run(plan) == wanted
