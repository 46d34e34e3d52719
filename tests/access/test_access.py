"""Keys, scopes and quotas: pure, with the clock in the test's hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.access import (
    Bucket,
    Key,
    Keyring,
    Limits,
    Quota,
    Scope,
    digest_of,
    format_key,
    new_secret,
    parse_keys,
)
from headrace.errors import ConfigError, RateLimited

DIGEST = "ab" * 32
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
AMOUNTS = st.none() | st.integers(1, 1_000_000_000)
KEYS = st.builds(
    Key, NAMES, st.binary(min_size=32, max_size=32), NAMES,
    st.frozensets(st.sampled_from(Scope), min_size=1), st.builds(Limits, AMOUNTS, AMOUNTS, AMOUNTS),
)  # fmt: skip


@settings(derandomize=True, deadline=None)
@given(st.lists(KEYS, unique_by=(lambda key: key.name, lambda key: key.digest), max_size=5))
def test_what_is_written_is_read(keys: list[Key]) -> None:
    text = "# a comment\n\n" + "\n".join(format_key(key) for key in keys)
    assert parse_keys(text) == keys


@pytest.mark.parametrize(
    "line",
    [
        "alice", "alice:sha256:abcd", f"alice:md5:{DIGEST}", f"a b:sha256:{DIGEST}", f":sha256:{DIGEST}",
        f"al/ice:sha256:{DIGEST}", f"alice:sha256:{DIGEST} speed=3", f"alice:sha256:{DIGEST} concurrent=0",
        f"alice:sha256:{DIGEST} concurrent=-1", f"alice:sha256:{DIGEST} concurrent=1e3",
        f"alice:sha256:{DIGEST} scopes=root", f"alice:sha256:{DIGEST} tenant=../x", f"alice:sha256:{DIGEST}x",
        f"alice:sha256:{DIGEST} concurrent=99999999999", "hr-thisisasecretthatsomebodypasted",
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_by_its_number_and_never_shown(line: str) -> None:
    with pytest.raises(ConfigError, match=r"^line 3: ") as caught:
        parse_keys(f"# keys\nbob:sha256:{'cd' * 32}\n{line}")
    assert "secret" not in str(caught.value)
    assert DIGEST not in str(caught.value)


def test_names_and_digests_are_there_once() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        parse_keys(f"a:sha256:{DIGEST}\na:sha256:{'cd' * 32}")
    with pytest.raises(ConfigError, match="line 2"):
        parse_keys(f"a:sha256:{DIGEST}\nb:sha256:{DIGEST.upper()}")


def test_secrets_are_long_and_found_only_whole() -> None:
    secret = new_secret()
    assert len(secret) >= 43
    ring = Keyring([Key("a", digest_of(secret.encode()), "a"), Key("b", digest_of(b"x"), "b")])
    found = ring.find(secret.encode())
    assert found is not None
    assert found.key.name == "a"
    for wrong in (secret[:-1], secret + "x", secret.upper(), "", secret[:20], digest_of(secret.encode()).hex()):
        assert ring.find(wrong.encode()) is None


def test_a_key_keeps_its_use_over_a_reload() -> None:
    key = Key("a", digest_of(b"x"), "a", limits=Limits(requests_per_minute=2))
    ring = Keyring([key], 0.0)
    account = ring.find(b"x")
    assert account is not None
    account.quota.enter(0.0)
    account.quota.enter(0.0)
    ring.replace([Key("a", digest_of(b"y"), "a", limits=Limits(requests_per_minute=4))], 0.0)
    assert ring.find(b"x") is None
    again = ring.find(b"y")
    assert again is account
    assert again.quota.running == 2
    with pytest.raises(RateLimited):
        again.quota.enter(0.0)
    again.quota.enter(15.0)
    ring.replace([], 15.0)
    assert (len(ring), ring.find(b"y")) == (0, None)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 600), st.integers(0, 10**9))
def test_a_bucket_keeps_its_rate_and_tells_the_truth(per_minute: int, seed: int) -> None:
    """Over every stretch of time: no more than the rate and one bucket; whoever waits as told is let in, and a
    moment earlier is not."""
    rng, now, taken = random.Random(seed), 0.0, list[float]()
    bucket = Bucket(per_minute, per_minute, now)
    for _ in range(200):
        now += rng.choice([0.0, 0.01, 0.5, 3.0, 70.0])
        wait = bucket.wait(1, now)
        if wait == 0:
            bucket.take(1, now)
            taken.append(now)
            continue
        assert bucket.wait(1, now + wait * 0.99) > 0
        assert bucket.wait(1, now + wait) < 1e-6
        now += wait
    for i, start in enumerate(taken):
        for j in range(i, len(taken)):
            assert j - i + 1 <= per_minute + (taken[j] - start) * per_minute / 60 + 1e-6


def test_exactly_the_quota_passes() -> None:
    quota = Quota(Limits(requests_per_minute=100), 0.0)
    for _ in range(100):
        quota.enter(0.0)
    for _ in range(900):
        with pytest.raises(RateLimited) as caught:
            quota.enter(0.0)
        assert caught.value.retry_after == pytest.approx(0.6)


def test_tokens_are_paid_for_afterwards() -> None:
    quota = Quota(Limits(tokens_per_minute=600), 0.0)
    quota.enter(0.0)
    quota.spend(1200, 0.0)
    with pytest.raises(RateLimited, match="600 tokens per minute") as caught:
        quota.enter(0.0)
    assert caught.value.retry_after == pytest.approx(60.1)
    with pytest.raises(RateLimited):
        quota.enter(60.0)
    quota.enter(60.2)


def test_concurrent_requests_are_counted_and_a_refusal_costs_nothing() -> None:
    quota = Quota(Limits(concurrent=2, requests_per_minute=3), 0.0)
    quota.enter(0.0)
    quota.enter(0.0)
    for _ in range(10):
        with pytest.raises(RateLimited, match="2 requests running"):
            quota.enter(0.0)
    quota.leave()
    quota.enter(0.0)
    quota.leave()
    with pytest.raises(RateLimited, match="3 requests per minute"):
        quota.enter(0.0)
    assert quota.running == 1


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    bucket = Bucket(60, 0, 100.0)
    assert bucket.wait(1, 50.0) == pytest.approx(1.0)
    assert bucket.wait(1, 100.5) == pytest.approx(0.5)
