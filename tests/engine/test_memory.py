from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.memory import KV_ITEM, format_bytes, format_plan, plan_memory, require
from headrace.errors import MemoryPlanError
from headrace.types import BLOCK_SIZE, MemoryItem

WEIGHTS = MemoryItem("weights", 600)


@settings(deadline=None, derandomize=True)
@given(
    limit=st.integers(0, 10_000),
    weights=st.integers(0, 10_000),
    block=st.integers(1, 100),
    length=st.integers(1, 1000),
    seqs=st.integers(1, 8),
    kv=st.none() | st.integers(0, 20_000),
)
def test_a_plan_without_a_suggestion_fits_and_holds_a_sequence(
    limit: int, weights: int, block: int, length: int, seqs: int, kv: int | None
) -> None:
    plan = plan_memory(limit, [MemoryItem("weights", weights)], block, length, seqs, kv)
    one = -(-length // BLOCK_SIZE)
    assert plan.kv_blocks >= 0
    assert plan.left >= 0 or plan.kv_blocks == 0
    assert (plan.suggestion is None) == (plan.kv_blocks >= one)
    if kv is not None:
        assert plan.kv_blocks * block <= kv
    assert plan.items[-1] == MemoryItem(KV_ITEM, plan.kv_blocks * block)
    if plan.suggestion is None:
        assert require(plan) is plan
    else:
        with pytest.raises(MemoryPlanError, match="fix:"):
            require(plan)


def test_the_pool_is_no_larger_than_all_seats_can_use() -> None:
    assert plan_memory(10**9, [WEIGHTS], 10, 32, 4).kv_blocks == 8


@pytest.mark.parametrize(
    ("limit", "kv", "fix"),
    [
        (700, None, "--max-model-len to 160 "),
        (10_000, 50, "at least 1000 bytes"),
        (605, None, "smaller model"),
        (500, None, "smaller model"),
    ],
)
def test_one_fix_is_suggested(limit: int, kv: int | None, fix: str) -> None:
    plan = plan_memory(limit, [WEIGHTS], 10, 1600, 4, kv)
    assert fix in (plan.suggestion or "")


def test_following_the_suggested_length_helps() -> None:
    assert plan_memory(700, [WEIGHTS], 10, 160, 4).suggestion is None


def test_unasked_the_pool_takes_half_of_what_is_left_but_room_for_one() -> None:
    assert plan_memory(2600, [WEIGHTS], 10, 160, 4096).kv_blocks == (2600 - WEIGHTS.bytes) // 2 // 10
    assert plan_memory(720, [WEIGHTS], 10, 160, 4096).kv_blocks == 10


def test_table() -> None:
    mib = 2**20
    plan = plan_memory(300 * mib, [MemoryItem("weights", 200 * mib)], mib, 160, 4)
    assert format_plan(plan).splitlines() == [
        "weights    200.0 MiB",
        "KV cache    40.0 MiB  40 blocks of 16 tokens: 640 tokens",
        "left        60.0 MiB",
        "limit      300.0 MiB",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (-(2**20), "-1.0 MiB"), (3 * 2**39, "1536.00 GiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text
