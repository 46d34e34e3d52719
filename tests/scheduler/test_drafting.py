"""Prompt lookup against brute force, and what it costs."""

from __future__ import annotations

import time
from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kvcache.prefix import BlockKeys
from headrace.scheduler.drafting import PromptLookup, SuffixIndex
from headrace.scheduler.state import RequestState, SequenceState
from headrace.types import Request, SamplingParams


def sequence(tokens: list[int], name: int = 1) -> SequenceState:
    request = Request("r", tuple(tokens), SamplingParams(10), 0.0)
    return SequenceState(RequestState(request, 0, 0, 1000), 0, name, BlockKeys(b"", ""))


def agreement(tokens: list[int], place: int) -> int:
    """How many tokens before and at ``place`` are those at the end."""
    count = 0
    while count <= place and tokens[place - count] == tokens[len(tokens) - 1 - count]:
        count += 1
    return count


def longest(tokens: list[int]) -> int:
    """What `SuffixIndex.find` promises, of the eight latest places."""
    places = [i for i in range(1, len(tokens) - 1) if agreement(tokens, i) >= 2][-8:]
    return max(places, key=lambda i: (min(agreement(tokens, i), 16), i), default=0)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.data())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_the_longest_agreement_is_found(tokens: list[int], data: st.DataObject) -> None:
    index, cut = SuffixIndex(), data.draw(st.integers(1, len(tokens)))
    index.extend(array("i", tokens[:cut]))
    index.extend(array("i", tokens))
    assert index.find(array("i", tokens)) == longest(tokens)


def test_what_followed_is_drafted() -> None:
    drafter = PromptLookup()
    said = sequence([1, 2, 3, 4, 5, 6, 7, 8, 2, 3])
    assert list(drafter.propose([(said, 4)])[0]) == [4, 5, 6, 7]
    assert list(drafter.propose([(said, 0)])[0]) == []
    said.tokens.append(9)
    assert list(drafter.propose([(said, 4)])[0]) == []
    said.tokens.extend([4, 5])
    assert list(drafter.propose([(said, 9)])[0]) == [6, 7, 8, 2, 3, 9, 4, 5, 6]


def test_a_loop_goes_on() -> None:
    said = sequence([9, 1, 2, 3, 1, 2, 3, 1, 2])
    assert list(PromptLookup().propose([(said, 7)])[0]) == [3, 1, 2, 3, 1, 2, 3]
    assert list(PromptLookup().propose([(sequence([5, 5, 5]), 4)])[0]) == [5, 5, 5, 5]


def test_sequences_do_not_see_each_other_and_are_forgotten() -> None:
    drafter = PromptLookup()
    one, two = sequence([1, 2, 3, 1, 2], 1), sequence([1, 2, 4, 1, 2], 2)
    assert [list(d) for d in drafter.propose([(one, 1), (two, 1)])] == [[3], [4]]
    assert [list(d) for d in drafter.propose([(two, 1)])] == [[4]]
    assert set(drafter._indices) == {2}


def test_long_texts_cost_no_more() -> None:
    """The time of a step does not grow with the text, even one that offers thousands of places."""
    said = sequence([1, 2, 1] * 20_000)
    drafter = PromptLookup()
    drafter.propose([(said, 1)])
    best = 1.0
    for _ in range(200):
        said.tokens.append(1)
        start = time.thread_time()
        drafter.propose([(said, 4)])
        best = min(best, time.thread_time() - start)
    assert best < 200e-6, "a look at every place would take milliseconds"
