from __future__ import annotations

import math
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.scheduler.sampling import SamplingRule, banned_next, derive_seed, stop_token_ids
from headrace.types import GREEDY, RowSampling, SamplingParams

TOKENS = array("i", [1, 2, 3])


def rule(**params: Any) -> SamplingRule:
    return SamplingRule(SamplingParams(**{"max_tokens": 10, "temperature": 0.0, **params}), seed=5, num_prompt=3)


@settings(deadline=None, derandomize=True)
@given(
    words=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=4).map(tuple), max_size=5),
    output=st.lists(st.integers(0, 3), max_size=8),
)
def test_bad_words_never_get_complete(words: list[tuple[int, ...]], output: list[int]) -> None:
    banned = set(banned_next(words, array("i", output)))
    for token in range(4):
        text = [*output, token]
        complete = any(tuple(text[-len(word) :]) == word for word in words)
        assert (token in banned) == complete
    row = rule(bad_words=tuple(words)).at(array("i", [*TOKENS, *output]))
    assert {t for t, bias in row.bias.items() if bias == -math.inf} == banned


def test_plain_greedy_rows_share_one_object() -> None:
    assert rule().at(TOKENS) is GREEDY
    assert rule(top_k=5, seed=3).at(TOKENS) is GREEDY


@pytest.mark.parametrize("params", [{"logit_bias": {1: 2.0}}, {"logprobs": 0}, {"allowed_token_ids": (1, 2)}])
def test_rows_that_never_change_share_one_object(params: dict[str, Any]) -> None:
    made = rule(**params)
    assert made.at(TOKENS) is made.at(array("i", [1, 2, 3, 4]))
    assert made.at(TOKENS) is not GREEDY


def test_everything_arrives() -> None:
    made = rule(
        temperature=0.7,
        top_k=4,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={7: 1.5},
        allowed_token_ids=(7, 8),
        bad_words=((9,),),
        logprobs=2,
    ).at(array("i", [1, 2, 3, 4]))
    assert made == RowSampling(
        temperature=0.7,
        top_k=4,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=5,
        position=4,
        prompt_length=3,
        history=array("i", [1, 2, 3, 4]),
        bias={7: 1.5, 9: -math.inf},
        allowed=(7, 8),
        logprobs=2,
    )


def test_no_history_without_penalties() -> None:
    assert rule(temperature=1.0).at(TOKENS).history == ()


def test_min_tokens_bans_the_stops_until_then() -> None:
    made = rule(min_tokens=2, eos_token_ids=frozenset([0]), stop_token_ids=frozenset([9]))
    assert made.at(TOKENS).bias == made.at(array("i", [1, 2, 3, 4])).bias == {0: -math.inf, 9: -math.inf}
    assert made.at(array("i", [1, 2, 3, 4, 5])) is GREEDY


def test_stops() -> None:
    params = SamplingParams(1, eos_token_ids=frozenset([0]), stop_token_ids=frozenset([9]))
    assert stop_token_ids(params) == {0, 9}
    ignoring = SamplingParams(1, eos_token_ids=frozenset([0]), stop_token_ids=frozenset([9]), ignore_eos=True)
    assert stop_token_ids(ignoring) == {9}


def test_bad_words_are_matched_against_the_output_alone() -> None:
    made = rule(bad_words=((3, 4),))
    assert made.at(TOKENS).bias == {}
    assert made.at(array("i", [1, 2, 3, 3])).bias == {4: -math.inf}


def test_seeds() -> None:
    seeds = [derive_seed(-3, index) for index in range(100)]
    assert seeds[0] == 2**64 - 3
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert derive_seed(7, 1) != derive_seed(8, 1)


def test_penalties_look_at_a_window() -> None:
    """What is left of the prompt in the window is still the prompt."""
    output = array("i", [*TOKENS, 4, 5])
    whole = rule(repetition_penalty=2.0).at(output)
    assert (list(whole.history), whole.prompt_length) == ([1, 2, 3, 4, 5], 3)
    some = rule(repetition_penalty=2.0, penalty_window=3).at(output)
    assert (list(some.history), some.prompt_length, some.position) == ([3, 4, 5], 1, 5)
    late = rule(repetition_penalty=2.0, penalty_window=2).at(output)
    assert (list(late.history), late.prompt_length) == ([4, 5], 0)
