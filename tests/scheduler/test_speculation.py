"""Speculation changes nothing but the number of steps; and when it does not pay, hardly that."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from headrace.errors import ConfigError
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.drafting import PromptLookup
from headrace.scheduler.sampling import SamplingRule
from headrace.scheduler.speculation import Cost, Odds, Speculation, SpeculationConfig, accepted, best_length
from headrace.scheduler.state import SequenceState
from headrace.types import GREEDY, FinishReason, PlanRow, Request, RowResult, SamplingParams
from tests import fakes
from tests.fakes import VOCAB, expected_text
from tests.scheduler.simulation import Prophet, World, live

SEEDS_PER_TEST = 40
LIMITS = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=200, max_prefill_tokens=64)


@pytest.mark.parametrize("start", range(0, 240, SEEDS_PER_TEST))
def test_every_text_is_what_it_is_alone(start: int) -> None:
    for seed in range(start, start + SEEDS_PER_TEST):
        try:
            live(seed, speculates=True)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_the_seeds_reach_the_interesting_places() -> None:
    worlds = [live(seed, speculates=True) for seed in range(60)]
    drafts = Counter((right == 0, right == drafted) for world in worlds for drafted, right in world.drafts)
    assert min(drafts[True, False], drafts[False, True], drafts[False, False]) > 100
    assert {seen.finish for world in worlds for seen in world.seen.values()} == set(FinishReason)
    assert sum(world.scheduler.preemptions for world in worlds if world.drafts) > 30
    assert sum(world.cache.stats().hit_tokens for world in worlds if world.drafts) > 100


def _always_accept(row: PlanRow, answer: RowResult, stops: object) -> list[RowResult]:
    return [*answer.earlier, answer]


def _one_too_many(row: PlanRow, answer: RowResult, stops: frozenset[int]) -> list[RowResult]:
    kept = accepted(row, answer, stops)
    return kept if kept[-1] is answer or kept[-1].token in stops else [*kept, [*answer.earlier, answer][len(kept)]]


def _stops_unseen(row: PlanRow, answer: RowResult, stops: object) -> list[RowResult]:
    return accepted(row, answer, frozenset())


def _assert_found() -> None:
    for seed in range(40):
        try:
            live(seed, speculates=True)
        except Exception:
            return
    raise AssertionError("the planted bug went unseen")


@pytest.mark.parametrize("bug", [_always_accept, _one_too_many, _stops_unseen])
def test_planted_bugs_are_found(bug: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.scheduler.scheduler.accepted", bug)
    _assert_found()


def test_a_sampling_of_another_position_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SamplingRule.at
    monkeypatch.setattr(
        SamplingRule, "at", lambda self, tokens, length=None: real(self, tokens, length and max(length - 1, 1))
    )
    _assert_found()


# ----------------------------------------------------------------------------------------- single properties


class Scripted:
    """Drafts from a list, one for each step that asks for one: the first that only decodes does not."""

    costs_time = False

    def __init__(self, drafts: Sequence[Sequence[int]]) -> None:
        self._drafts = list(drafts)

    def propose(self, wanted: Sequence[tuple[SequenceState, int]]) -> list[Sequence[int]]:
        return [self._drafts.pop(0)[:most] if most and self._drafts else () for _, most in wanted]


def world(drafter: object, **changes: int) -> World:
    return World(LIMITS, 40, speculation=Speculation(drafter, SpeculationConfig(**changes)))  # type: ignore[arg-type]  # any drafter


def request(output: int, prompt: int = 20, **sampling: object) -> Request:
    rng = random.Random(7)
    params = SamplingParams(output, **{"temperature": 0.0, "seed": 1, **sampling})  # type: ignore[arg-type]  # any parameter
    return Request("a", tuple(rng.randrange(VOCAB) for _ in range(prompt)), params, 0.0)


def test_right_drafts_save_steps() -> None:
    w = world(Prophet(random.Random(0), 0.0, 200))
    w.add(request(60))
    w.run()
    w.check_texts()
    assert w.backend.steps < 30
    assert all(drafted == right for drafted, right in w.drafts)


def test_one_event_brings_the_tokens_of_a_step() -> None:
    asked = request(10)
    text = expected_text(asked, 0, 1, 200)
    w = world(Scripted([text[2:4]]))
    w.add(asked)
    w.run()
    w.check_texts()
    assert w.seen["a", 0].events == 10 - 2
    assert w.drafts == [(2, 2)]


def test_a_fault_counts_where_the_text_gets_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wrong draft it harms nobody; after a right one it ends the request, once the text before it was said."""
    asked = request(6)
    text = expected_text(asked, 0, 1, 200)
    wrong = next(v for v in range(VOCAB) if v not in text and v not in asked.prompt)
    assert text[2] not in (*text[:2], *asked.prompt)
    for faulty, want in ((wrong, text), (text[2], text[:3])):
        with monkeypatch.context() as patch:
            real = fakes.choose
            patch.setattr(fakes, "choose", lambda c, s, bad=faulty, real=real: None if c[-1] == bad else real(c, s))
            w = world(Scripted([[faulty, 3]]))
            w.add(asked)
            w.run()
        seen = w.seen["a", 0]
        assert seen.tokens == want
        assert (seen.finish is FinishReason.ERROR) == (faulty == text[2])
        assert w.drafts == [(2, int(faulty == text[2]))]
        assert w.cache.pool.used == 0


@pytest.mark.parametrize("output", [1, 2, 3, 9])
def test_a_draft_never_passes_the_end(output: int) -> None:
    asked = request(output)
    text = expected_text(replace(asked, sampling=replace(asked.sampling, max_tokens=30)), 0, 1, 200)
    w = world(Scripted([text[i : i + 20] for i in range(2, 11)]))
    w.add(asked)
    w.run()
    w.check_texts()
    assert w.seen["a", 0].finish is FinishReason.LENGTH
    assert w.cache.pool.used == 0


def test_a_stop_token_in_a_draft_ends_the_sequence() -> None:
    base = request(30)
    text = expected_text(base, 0, 1, 200)
    stop = text[3]
    asked = request(30, stop_token_ids=frozenset([stop]))
    w = world(Scripted([text[2:9]]))
    w.add(asked)
    w.run()
    w.check_texts()
    assert w.seen["a", 0].tokens == text[: text.index(stop) + 1]


def test_no_drafts_in_large_steps_or_beside_a_prompt() -> None:
    w = world(Prophet(random.Random(0), 0.0, 200), max_rows=4)
    for name in "abc":
        w.add(replace(request(30), id=name))
    w.run()
    w.check_texts()
    assert not any(row for row in w.drafts if row[0] > 2), "four rows hold a last token and three drafts, no more"
    busy = world(Prophet(random.Random(0), 0.0, 200), max_rows=2)
    for name in "ab":
        busy.add(replace(request(30), id=name))
    busy.run()
    assert not busy.drafts


def test_drafts_take_no_block_that_others_need() -> None:
    """Two sequences that fill the pool exactly, with drafts that reach far: nobody is preempted for a guess."""
    config = replace(LIMITS, max_model_len=64)
    w = World(config, 8, speculation=Speculation(Prophet(random.Random(0), 0.0, 64), SpeculationConfig(15, 64)))
    for name in "ab":
        w.add(replace(request(44), id=name))
    w.run()
    w.check_texts()
    assert w.drafts
    assert w.scheduler.preemptions == 0


# -------------------------------------------------------------------------------------------------- what pays


def test_the_best_length_is_the_best() -> None:
    for chance in (0.0, 0.02, 0.3, 0.5, 0.8, 0.95, 1.0):
        for cost in (0.01, 0.05, 0.3, 1.0):
            gains = [sum(chance**i for i in range(n + 1)) / (1 + cost * n) for n in range(17)]
            assert gains[best_length(chance, cost, 16)] == pytest.approx(max(gains))


def test_drafts_that_fail_stop_and_are_tried_again() -> None:
    for cost in (0.01, 0.1, 0.5):
        odds, drafted = Odds(), 0
        for _ in range(2000):
            if not odds.length:
                odds.skip()
            else:
                drafted += odds.length
                odds.learn(odds.length, 0, cost)
        assert drafted * cost / 2000 < 0.02, "the price of never being right"
        for _ in range(10):
            while not odds.length:
                odds.skip()
            odds.learn(odds.length, odds.length, cost)
        assert odds.length > 4


def test_the_price_of_a_token_is_learned() -> None:
    costs = Cost()
    assert costs.of(1) == pytest.approx(0.1)
    for _ in range(40):
        costs.learn(1, 0, 0.010)
        costs.learn(1, 10, 0.015)
        costs.learn(4, 0, 0.020)
        costs.learn(4, 12, 0.020)
    assert costs.of(1) == pytest.approx(0.05, abs=0.002)
    assert costs.of(4) == pytest.approx(0.01, abs=0.002)
    for _ in range(10):
        costs.learn(1, 0, 1e9)  # held up: not what a step takes
    assert costs._plain[1] < 0.010 * 1.2**11


def test_random_texts_are_hardly_drafted_for() -> None:
    w = world(PromptLookup())
    w.add(request(150))
    w.run()
    w.check_texts()
    assert sum(drafted for drafted, _ in w.drafts) < 25


def test_settings_out_of_range() -> None:
    for values in ((0, 16), (17, 16), (4, 1)):
        with pytest.raises(ConfigError):
            SpeculationConfig(*values)


def test_choices_count_up_to_the_first_that_differs() -> None:
    row = PlanRow(1, (9, 1, 2, 3), 0, (0,), GREEDY, earlier=[GREEDY] * 3)
    for said, count in (((1, 2, 3, 4), 4), ((1, 2, 5, 4), 3), ((1, 5, 3, 4), 2), ((5, 2, 3, 4), 1)):
        *earlier, last = [RowResult(token) for token in said]
        answer = replace(last, earlier=tuple(earlier))
        assert [c.token for c in accepted(row, answer, frozenset())] == list(said[:count])
    *earlier, last = [RowResult(token) for token in (1, 2, 3, 4)]
    assert len(accepted(row, replace(last, earlier=tuple(earlier)), frozenset([2]))) == 2
