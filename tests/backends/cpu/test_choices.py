"""Choosing tokens at the end of a step: arg-max without logits, sampling, logprobs of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from headrace.backends.reference.backend import load as load_reference
from headrace.types import GREEDY, Plan, PlanRow, RowResult, RowSampling
from headrace.weights.spec import ModelSpec
from tests.backends.cpu.conftest import Loader
from tests.backends.cpu.models import BASE, all_logprobs, checkpoint, prompt, tensor


def greedy(tokens: tuple[int, ...], block: int = 0) -> PlanRow:
    return PlanRow(block, tokens, 0, (block,), GREEDY)


@pytest.mark.parametrize("spec", [BASE, replace(BASE, logit_softcap=2.0, tied_embeddings=False)])
def test_greedy_is_the_most_likely_token(spec: ModelSpec, make: Loader) -> None:
    backend = make(spec, 64)
    prompts = [prompt(spec, 1 + i % 16, i) for i in range(40)]
    fast = backend.run(Plan(tuple(greedy(tokens, i) for i, tokens in enumerate(prompts)))).rows
    rows = tuple(PlanRow(i, tokens, 0, (i,), all_logprobs(spec)) for i, tokens in enumerate(prompts))
    for plain, full in zip(fast, backend.run(Plan(rows)).rows, strict=True):
        assert full.logprobs is not None
        assert plain.token == full.token == full.logprobs.top[0][0]
        assert plain.logprobs is None


def test_lowest_id_wins_a_tie(make: Loader) -> None:
    """All rows of lm_head are alike, in every panel and thread: token 0, never a padding column."""
    spec = replace(BASE, tied_embeddings=False)
    cp = checkpoint(spec)
    for sign in (1, -1):
        same = tensor(np.full((spec.vocab_size, spec.hidden_size), sign * 0.25, np.float32))
        backend = make(replace(cp, tensors={**cp.tensors, "lm_head": same}), 4)
        assert backend.run(Plan((greedy((3, 4)), greedy((7,), 1)))).rows[0].token == 0


def test_rows_that_want_no_token_get_none(make: Loader) -> None:
    backend = make(BASE, 4)
    results = backend.run(Plan((PlanRow(0, (1, 2), 0, (0,)), greedy((3,), 1)))).rows
    assert results[0].token is None
    assert results[1].token is not None


def test_sampling_is_the_reference_samplers(make: Loader, dtype: str) -> None:
    if dtype != "float32":
        pytest.skip("bf16 logits differ from the reference's; the sampler is the same")
    samplings = [
        RowSampling(temperature=0.8, seed=seed, position=seed, top_k=20, top_p=0.9, min_p=0.01, logprobs=3)
        for seed in range(12)
    ]
    samplings.append(RowSampling(repetition_penalty=1.7, history=(1, 2, 3, 4), prompt_length=2, frequency_penalty=0.5))
    samplings.append(RowSampling(bias={17: 100.0, 3: -float("inf")}, logprobs=0))
    samplings.append(RowSampling(allowed=(40, 41), temperature=1.0, seed=5))
    rows = tuple(PlanRow(i, prompt(BASE, 5, i), 0, (i,), s) for i, s in enumerate(samplings))
    reference = load_reference(checkpoint(BASE), dtype="float32", max_model_len=64, max_batch_tokens=256)
    reference.allocate_kv(32)
    for got, want in zip(make(BASE, 32).run(Plan(rows)).rows, reference.run(Plan(rows)).rows, strict=True):
        assert got.token == want.token
        assert (got.logprobs is None) == (want.logprobs is None)
        if got.logprobs and want.logprobs:
            assert [t for t, _ in got.logprobs.top] == [t for t, _ in want.logprobs.top]
            assert got.logprobs.rank == want.logprobs.rank
            assert abs(got.logprobs.logprob - want.logprobs.logprob) < 1e-4


def test_prompt_logprobs_are_those_of_each_position(make: Loader) -> None:
    """Targets of a row beside greedy and sampled rows, more of them than one pass holds."""
    backend = make(BASE, 128)
    tokens = prompt(BASE, 60)
    alone = [
        backend.run(Plan((PlanRow(0, tokens[: i + 1], 0, (0, 1, 2, 3), all_logprobs(BASE)),))).rows[0].logprobs
        for i in range(59)
    ]
    row = PlanRow(1, tokens, 0, (4, 5, 6, 7), GREEDY, tokens[1:], 4)
    other = PlanRow(2, tokens[:3], 0, (8,), RowSampling(temperature=1.0, seed=1, logprobs=2), (5,), 1)
    results = backend.run(Plan((row, greedy((1,), 9), other))).rows
    assert len(results[0].target_logprobs) == 59
    assert results[1].target_logprobs == ()
    assert len(results[2].target_logprobs) == 1
    assert results[2].logprobs is not None
    assert len(results[2].logprobs.top) == 2
    for i, (got, want) in enumerate(zip(results[0].target_logprobs, alone, strict=True)):
        assert want is not None
        assert got.token == tokens[i + 1]
        assert got.top == want.top[:4]
        assert got.logprob == dict(want.top)[got.token]


def test_more_logits_than_one_pass(make: Loader) -> None:
    """A vocabulary so large that sixteen rows of logits fill the pass; forty are asked for."""
    small = replace(BASE, hidden_size=32, ffn_size=32, num_layers=1, layer_rope=(0,), layer_window=(None,))
    spec = replace(small, vocab_size=600_000)
    backend = make(spec, 8)
    tokens = prompt(spec, 41)
    results = backend.run(Plan((PlanRow(0, tokens, 0, (0, 1, 2), GREEDY, tokens[1:], 1),))).rows[0]
    assert len(results.target_logprobs) == 40
    single = backend.run(Plan((PlanRow(0, tokens[:38], 0, (3, 4, 5), RowSampling(logprobs=1)),))).rows[0].logprobs
    assert single is not None
    assert results.target_logprobs[37].top == single.top


@pytest.mark.parametrize("spec", [BASE, replace(BASE, logit_softcap=2.0, tied_embeddings=False)])
def test_the_most_likely_token_that_a_mask_allows(spec: ModelSpec, make: Loader) -> None:
    """Masked rows keep a running arg-max as plain ones do; the sampler, asked for logprobs, finds the same."""
    rng = np.random.default_rng(5)
    words = -(-spec.vocab_size // 32)
    masks = [
        (rng.integers(0, 2**32, words, dtype=np.uint32) & rng.integers(0, 2**32, words, dtype=np.uint32))
        for _ in range(40)
    ]
    masks[0][:] = 0
    masks[1][:] = 2**32 - 1
    masks[2][1:] = 0
    prompts = [prompt(spec, 1 + i % 16, i) for i in range(40)]
    backend = make(spec, 64)

    def run(logprobs: int | None) -> list[RowResult]:
        rows = [
            PlanRow(
                i, prompts[i], 0, (i,), GREEDY if i % 5 == 4 else RowSampling(mask=mask.tobytes(), logprobs=logprobs)
            )
            for i, mask in enumerate(masks)
        ]
        return list(backend.run(Plan(tuple(rows))).rows)

    for i, (fast, full) in enumerate(zip(run(None), run(0), strict=True)):
        assert fast.token == full.token, i
        assert fast.error == full.error
        assert (fast.error is not None) == (i == 0)
        if i and i % 5 != 4:
            token = fast.token or 0
            assert masks[i][token // 32] >> (token % 32) & 1
