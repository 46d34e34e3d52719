import math
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench.stats import Sample, Spread, percentile, spread, summarise


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], q: float) -> None:
    assert math.isclose(percentile(sorted(values), q), float(np.percentile(values, q)), rel_tol=1e-9, abs_tol=1e-6)


def test_nothing_seen_is_zero_not_nan() -> None:
    assert spread([]) == Spread()
    result = summarise("none", [], cpu=0.0)
    assert (result.seconds, result.output_tokens_per_s, result.client_cpu_share) == (0.0, 0.0, 0.0)


def test_a_level_by_hand() -> None:
    one = Sample(10.0, 10.5, 12.5, 13.0, 5, array("d", [0.5] * 4), prompt_tokens=7, output_tokens=5, cached_tokens=3)
    two = Sample(11.0, 12.0, 13.0, 14.0, 3, array("d", [0.5, 0.5]), prompt_tokens=9)  # no usage: 3 chunks
    bad = Sample(10.0, end=10.1, error="http 429", detail="full")
    result = summarise("2 at a time", [one, two, bad], cpu=0.08, late=[0.001], rss_bytes=5_000_000)
    assert (result.requests, result.succeeded, result.errors, result.first_error) == (3, 2, {"http 429": 1}, "full")
    assert result.seconds == 4.0
    assert result.output_tokens_per_s == 2.0
    assert result.total_tokens_per_s == 6.0
    assert result.requests_per_s == 0.5
    assert (result.prompt_tokens, result.cached_tokens, result.without_usage) == (16, 3, 1)
    assert result.ttft_ms == Spread(750.0, 750.0, 975.0, 995.0)
    assert result.itl_ms == Spread(500.0, 500.0, 500.0, 500.0)
    assert result.tpot_ms.mean == 500.0
    assert result.e2e_ms.p50 == 3000.0
    assert result.client_cpu_share == 0.02
    assert (result.late_ms_p99, result.server_rss_mb) == (1.0, 5.0)
    assert result.as_dict()["ttft_ms"] == {"mean": 750.0, "p50": 750.0, "p95": 975.0, "p99": 995.0}


@pytest.mark.parametrize("tokens", [1, 0])
def test_one_token_has_no_time_per_token(tokens: int) -> None:
    sample = Sample(0.0, 1.0, 1.0, 1.0, 1, output_tokens=tokens)
    assert summarise("x", [sample], cpu=0.0).tpot_ms == Spread()
