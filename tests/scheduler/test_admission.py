from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import InvalidRequest
from headrace.scheduler.admission import Limits, check, end_of
from headrace.types import Request, SamplingParams

LIMITS = Limits(vocab_size=100, max_model_len=50, kv_tokens=64)
EXTREMES = [-(2**63), -1, 100, 101, 2**31, 2**63]


def request(prompt: tuple[int, ...] = (1, 2), n: int = 1, **params: Any) -> Request:
    return Request("r", prompt, SamplingParams(**{"max_tokens": 10, **params}), 0.0, n=n)


def test_what_fits_is_accepted() -> None:
    check(request(), LIMITS)
    check(request((0, 99), max_tokens=48), LIMITS)
    check(request((1,) * 49, max_tokens=10**9), LIMITS)
    check(request(max_tokens=0), LIMITS)
    check(request(logit_bias={0: 1.0, 99: -1.0}, stop_token_ids=frozenset([99]), bad_words=((99, 0),)), LIMITS)
    check(request(allowed_token_ids=(5,), min_tokens=3, eos_token_ids=frozenset([2])), LIMITS)


@pytest.mark.parametrize("token", EXTREMES)
@pytest.mark.parametrize("field", ["prompt", "logit_bias", "stop_token_ids", "allowed_token_ids", "bad_words"])
def test_token_ids_out_of_range(field: str, token: int) -> None:
    fields: dict[str, Any] = {
        "prompt": (1, token),
        "logit_bias": {token: 1.0},
        "stop_token_ids": frozenset([token]),
        "allowed_token_ids": (1, token),
        "bad_words": ((1, token),),
    }
    with pytest.raises(InvalidRequest, match=f"{field}: token id {token} is not between 0 and 99") as refused:
        check(request(**{field: fields[field]}), LIMITS)
    assert refused.value.param == field


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ()}, "prompt: is empty"),
        ({"prompt": (1,) * 50}, "has 50 tokens.*holds 50 .*shorten it by 1 or more"),
        ({"prompt": (1,) * 70}, "shorten it by 21"),
        ({"n": 0}, "n: is 0"),
        ({"max_tokens": -1}, "max_tokens: is -1"),
        ({"min_tokens": 11}, "min_tokens: is 11, and must be between 0 and max_tokens .10."),
        ({"min_tokens": -1}, "min_tokens: is -1"),
        ({"bad_words": ((),)}, "bad_words: one of them has no tokens"),
        ({"allowed_token_ids": ()}, "allowed_token_ids"),
        ({"allowed_token_ids": (5,), "bad_words": ((5,),)}, "allowed_token_ids"),
        ({"allowed_token_ids": (5,), "min_tokens": 1, "eos_token_ids": frozenset([5])}, "allowed_token_ids"),
    ],
)
def test_refusals_name_the_field_the_limit_and_the_fix(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check(request(**fields), LIMITS)


def test_what_could_never_get_its_blocks_is_refused() -> None:
    small = Limits(vocab_size=100, max_model_len=50, kv_tokens=32)
    check(request(max_tokens=30), small)
    with pytest.raises(InvalidRequest, match=r"may reach 33 tokens.*holds 32; lower max_tokens to 30"):
        check(request(max_tokens=31), small)


def test_end() -> None:
    assert end_of(request(max_tokens=10), 50) == 12
    assert end_of(request(max_tokens=100), 50) == 50
