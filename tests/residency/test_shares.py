"""KV shares: every model can be in memory with its share whenever it could be with its floor."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.residency import Footprint, kv_shares

FOOTPRINTS = st.builds(
    lambda fixed, floor, more: Footprint(fixed, floor, floor + more),
    st.integers(1, 1000), st.integers(1, 200), st.integers(0, 2000),
)  # fmt: skip


def test_one_model_leaves_room_for_its_next_version() -> None:
    assert kv_shares(1000, [Footprint(200, 10, 10_000)]) == [300]
    assert kv_shares(1000, [Footprint(600, 10, 10_000)]) == [400], "if there can be any"
    assert kv_shares(1000, [Footprint(200, 10, 100)]) == [100], "no more than is of use"
    assert kv_shares(1000, [Footprint(200, 350, 10_000)]) == [800], "one context at least"


def test_models_that_fit_together_stay_together() -> None:
    assert kv_shares(1000, [Footprint(100, 10, 10_000), Footprint(300, 10, 10_000)]) == [100, 100]


def test_models_that_do_not_fit_together_share_as_if_the_others_were_not_there() -> None:
    assert kv_shares(1000, [Footprint(700, 100, 10_000), Footprint(600, 100, 10_000)]) == [300, 300]


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 4000), st.lists(FOOTPRINTS, min_size=1, max_size=6))
def test_shares_keep_their_promises(budget: int, models: list[Footprint]) -> None:
    shares = kv_shares(budget, models)
    for share, model in zip(shares, models, strict=True):
        assert model.floor <= share <= max(model.most, model.floor)
        if model.fixed + model.floor <= budget:
            assert model.fixed + share <= budget, "whoever fits with its floor fits with its share"
    fixed = sum(model.fixed for model in models)
    part = (budget - fixed) // len(models)
    if part >= max(model.floor for model in models):
        assert fixed + sum(shares) <= budget, "if equal parts are enough for all, all fit together"
