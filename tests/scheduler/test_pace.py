"""Units of prefill against adding them up one by one; the pace against a machine whose speed is known."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.scheduler.pace import Pace, tokens_within, units

CONTEXT = st.floats(0.5, 1e7)


@settings(derandomize=True, deadline=None)
@given(start=st.integers(0, 5000), count=st.integers(0, 300), context_unit=CONTEXT)
def test_units_add_up_position_by_position(start: int, count: int, context_unit: float) -> None:
    one_by_one = sum(1 + position / context_unit for position in range(start, start + count))
    assert units(start, count, context_unit) == pytest.approx(one_by_one, rel=1e-9)


@settings(derandomize=True, deadline=None)
@given(budget=st.floats(-1, 5000), start=st.integers(0, 100_000), context_unit=CONTEXT)
def test_the_most_tokens_within_a_budget(budget: float, start: int, context_unit: float) -> None:
    count = tokens_within(budget, start, context_unit)
    assert count >= 0
    assert count == 0 or units(start, count, context_unit) <= budget
    assert units(start, count + 1, context_unit) > budget


def test_the_pace_is_learnt_from_steps() -> None:
    pace = Pace(0.06, 512)
    assert pace.budget(0.0) == 512
    for _ in range(50):
        pace.observe(0.0, 0.0, 0.020)  # what decoding alone takes
        pace.observe(100.0, 0.0, 0.020 + 100 * 0.0003)
    assert pace.budget(0.0) == pytest.approx(0.06 / 0.0003, rel=0.02)


def test_prefill_may_take_half_as_long_again_as_decoding() -> None:
    pace = Pace(0.06, 512)
    for _ in range(50):
        pace.observe(0.0, 16.0, 0.084 + 16 * 0.001)  # a model whose weights take 84 ms to read
        pace.observe(50.0, 16.0, 0.084 + 66 * 0.001)
    assert pace.budget(0.0) == pytest.approx(1.5 * 84, rel=0.02)
    assert pace.budget(64.0) == pytest.approx(1.5 * (84 + 64), rel=0.02)


def test_the_pace_follows_a_machine_that_slows_down_and_recovers() -> None:
    pace = Pace(0.06, 512)
    for per_unit, expected in ((0.0002, 300), (0.002, 30), (0.0002, 300)):
        for _ in range(60):
            pace.observe(50.0, 0.0, 50 * per_unit)
        assert pace.budget(0.0) == pytest.approx(expected, rel=0.02)


def test_rows_that_decode_beside_it_do_not_starve_prefill() -> None:
    """128 prompts of 128 tokens come at once, so no step but the first few is without prefill. A decoding row takes
    nearly twice as long as a token of prefill, as on the machine where prefill once fell to 30 tokens a step."""
    pace, waiting, decoding, least = Pace(0.06, 512), 128 * 128.0, 0.0, 512.0
    for _ in range(10):
        pace.observe(0.0, 1.0, 0.010)
    while waiting > 0:
        prefill = min(waiting, pace.budget(decoding))
        least = min(least, pace.budget(decoding))
        pace.observe(prefill, decoding, 0.010 + 0.00019 * prefill + 0.00035 * decoding)
        waiting -= prefill
        decoding += prefill / 128
    assert least > 0.6 * 0.06 / 0.00019


def test_a_fast_machine_is_bounded_by_the_most() -> None:
    pace = Pace(0.06, 512)
    pace.observe(100.0, 0.0, 1e-6)
    assert pace.budget(0.0) == 512
