"""KV shares: every model can be in memory with its share whenever it could be with its floor."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.residency import Footprint, kv_shares

FOOTPRINTS = st.builds(
    lambda fixed, floor, more: Footprint(fixed, floor, floor + more),
    st.integers(1, 1000), st.integers(1, 200), st.integers(0, 2000),
)  # fmt: skip


def test_one_model_gets_half_of_what_its_weights_leave() -> None:
    assert kv_shares(1000, [Footprint(200, 10, 10_000)]) == [400]
    assert kv_shares(1000, [Footprint(200, 10, 100)]) == [100], "no more than is of use"
    assert kv_shares(1000, [Footprint(200, 500, 10_000)]) == [500], "one context at least"


def test_models_that_fit_together_stay_together_with_one_part_free() -> None:
    assert kv_shares(1000, [Footprint(100, 10, 10_000), Footprint(300, 10, 10_000)]) == [200, 200]


def test_models_that_do_not_fit_together_share_as_if_the_others_were_not_there() -> None:
    assert kv_shares(1000, [Footprint(700, 100, 10_000), Footprint(600, 100, 10_000)]) == [150, 150]


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 4000), st.lists(FOOTPRINTS, min_size=1, max_size=6))
def test_shares_keep_their_promises(budget: int, models: list[Footprint]) -> None:
    shares = kv_shares(budget, models)
    for share, model in zip(shares, models, strict=True):
        assert model.floor <= share <= max(model.most, model.floor)
        if model.fixed + model.floor <= budget:
            assert model.fixed + share <= budget, "whoever fits with its floor fits with its share"
    floors = sum(model.floor for model in models)
    if sum(model.fixed for model in models) + 2 * floors <= budget and all(
        s > m.floor for s, m in zip(shares, models, strict=True)
    ):
        taken = sum(model.fixed for model in models) + sum(shares)
        assert taken <= budget, "all fit together"
