from __future__ import annotations

from array import array
from typing import Any

import pytest

from headrace.kvcache import prefix
from headrace.kvcache.cache import KVCache, Lease, blocks_for
from headrace.kvcache.integrity import problems
from headrace.kvcache.pool import BlockPool
from headrace.types import BLOCK_SIZE


def fill(cache: KVCache, tokens: list[int], salt: str = "") -> Lease:
    """A lease on ``tokens``, all of them computed."""
    ids, keys = array("i", tokens), cache.keys(salt)
    lease = cache.open(ids, keys)
    assert cache.grow(lease, len(tokens))
    cache.computed(lease, ids, keys, len(tokens))
    return lease


def hits(cache: KVCache, tokens: list[int], salt: str = "") -> int:
    lease = cache.open(array("i", tokens), cache.keys(salt))
    found = lease.capacity
    cache.release(lease)
    return found


def test_a_released_prefix_is_found_again() -> None:
    cache = KVCache(8)
    cache.release(fill(cache, list(range(40))))
    assert hits(cache, list(range(40))) == 32
    assert hits(cache, list(range(20))) == 16
    assert hits(cache, [9, *range(1, 40)]) == 0


def test_blocks_are_used_again_before_others_are_touched() -> None:
    cache = KVCache(8, prefix_caching=False)
    assert cache.stats().touched == 0
    for length in (40, 17, 48):
        cache.release(fill(cache, list(range(length))))
    assert cache.stats().touched == 3


def test_a_running_prefix_is_shared() -> None:
    cache = KVCache(8)
    first = fill(cache, list(range(40)))
    second = fill(cache, list(range(40)))
    assert second.blocks[:2] == first.blocks[:2]
    assert cache.stats().used == 4


def test_the_last_token_is_never_a_hit() -> None:
    cache = KVCache(8)
    cache.release(fill(cache, list(range(32))))
    assert hits(cache, list(range(32))) == 16


def test_another_salt_finds_nothing() -> None:
    cache = KVCache(8)
    cache.release(fill(cache, list(range(40)), "a"))
    assert hits(cache, list(range(40)), "b") == hits(cache, list(range(40))) == 0
    assert hits(cache, list(range(40)), "a") == 32


def test_blocks_that_were_not_computed_are_not_found() -> None:
    cache = KVCache(8)
    ids, keys = array("i", range(64)), cache.keys("")
    lease = cache.open(ids, keys)
    cache.grow(lease, 64)
    cache.computed(lease, ids, keys, 31)
    assert hits(cache, list(range(64))) == 16
    cache.release(lease)
    assert cache.stats().cached == 1
    assert cache.stats().free == 7


def test_without_prefix_caching_nothing_is_kept() -> None:
    cache = KVCache(8, prefix_caching=False)
    cache.release(fill(cache, list(range(40))))
    assert hits(cache, list(range(40))) == 0
    assert cache.stats().cached == 0


def test_the_longest_idle_prefix_goes_first_and_its_end_before_its_beginning() -> None:
    cache = KVCache(6)
    old, new = list(range(48)), list(range(100, 148))
    cache.release(fill(cache, old))
    cache.release(fill(cache, new))
    lease = Lease()
    cache.leases.add(lease)
    for left in (32, 16, 0):
        cache.grow(lease, lease.capacity + BLOCK_SIZE)
        assert hits(cache, [*old, 0]) == left
        assert hits(cache, [*new, 0]) == 48


def test_equal_keys_do_not_mean_equal_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the hash broken (here: constant), the comparison of tokens and parents would still hold."""

    class Constant:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def digest(self) -> bytes:
            return b"same"

    monkeypatch.setattr(prefix, "blake2b", Constant)
    cache = KVCache(20)
    same, other = [7] * 16, [8] * 16
    cache.release(fill(cache, [*same, 1]))
    assert hits(cache, [*same, 1]) == 16
    assert hits(cache, [*other, 1]) == 0
    assert hits(cache, [*same, *same, 1]) == 16, "the second block comes after another parent"
    assert hits(cache, [*same, 1], "salt") == 0
    fill(cache, [*same, *same, *other, 1])
    assert hits(cache, [*same, *same, *other, 1]) == 16
    assert problems(cache) == []


def test_keys_differ_between_processes() -> None:
    tokens = array("i", range(16))
    assert KVCache(1).keys("").at(0, tokens) != KVCache(1).keys("").at(0, tokens)


def test_keys_are_chained() -> None:
    cache = KVCache(1)
    tokens = array("i", [1] * 32)
    keys = cache.keys("")
    assert keys.at(1, tokens) != keys.at(0, tokens)
    assert keys.prefix(1).at(1, tokens) == keys.at(1, tokens)


def test_an_orphan_is_not_indexed() -> None:
    """A block after one that was evicted could never be found, so it is not kept."""
    cache = KVCache(6)
    ids, keys = array("i", range(32)), cache.keys("")
    private = cache.open(ids, keys)
    cache.grow(private, 32)
    twin = fill(cache, list(range(17)))  # indexes the first block; `private` holds the same unindexed
    cache.computed(private, ids, keys, 16)
    assert private.chain == twin.chain
    cache.release(twin)
    hog = Lease()
    cache.leases.add(hog)
    assert cache.grow(hog, 4 * BLOCK_SIZE)
    cache.computed(private, ids, keys, 32)
    assert not private.chainable
    assert len(cache.index) == 0
    assert problems(cache) == []


def test_releasing_twice_is_an_error() -> None:
    cache = KVCache(2)
    lease = fill(cache, [1])
    cache.release(lease)
    with pytest.raises(KeyError):
        cache.release(lease)


def test_pool_errors() -> None:
    pool = BlockPool(1, lambda block: None)
    with pytest.raises(ValueError, match="no owner"):
        pool.drop(0, keep=False)
    with pytest.raises(KeyError):
        pool.share(0)
    pool.take()
    with pytest.raises(IndexError):
        pool.take()
    with pytest.raises(ValueError, match="at least one"):
        BlockPool(0, lambda block: None)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens) == blocks


def _leak(cache: KVCache, lease: Lease) -> None:
    cache.pool.references[lease.blocks[0]] += 1


def _free_twice(cache: KVCache, lease: Lease) -> None:
    cache.pool.free.append(cache.pool.free[0])


def _free_in_use(cache: KVCache, lease: Lease) -> None:
    cache.pool.free.append(lease.blocks[0])


def _lose(cache: KVCache, lease: Lease) -> None:
    cache.pool.free.pop()


def _share_silently(cache: KVCache, lease: Lease) -> None:
    other = Lease()
    other.blocks = array("i", lease.blocks[:1])
    other.capacity = BLOCK_SIZE
    cache.leases.add(other)


def _forget_idle(cache: KVCache, lease: Lease) -> None:
    cache.index.forget(next(iter(cache.pool.idle)))


def _index_free(cache: KVCache, lease: Lease) -> None:
    cache.index.add(b"key", "", b"", cache.pool.free[0])


def _claim_room(cache: KVCache, lease: Lease) -> None:
    lease.capacity += 1


def _hold_what_is_not_there(cache: KVCache, lease: Lease) -> None:
    lease.blocks[-1] = 99


def _index_too_much(cache: KVCache, lease: Lease) -> None:
    lease.chain += [1, 2, 3]


def _mix_up_the_index(cache: KVCache, lease: Lease) -> None:
    index = cache.index
    first, second = list(index._key_of)[:2]
    index._key_of[first], index._key_of[second] = index._key_of[second], index._key_of[first]


def _take_an_untouched(cache: KVCache, lease: Lease) -> None:
    cache.pool.free.remove(7)


def _own_an_untouched(cache: KVCache, lease: Lease) -> None:
    cache.pool.references[7] += 1


def _lose_an_id(cache: KVCache, lease: Lease) -> None:
    cache.index._live.pop()


@pytest.mark.parametrize(
    "damage",
    [
        _leak,
        _free_twice,
        _free_in_use,
        _lose,
        _share_silently,
        _forget_idle,
        _index_free,
        _claim_room,
        _hold_what_is_not_there,
        _index_too_much,
        _mix_up_the_index,
        _take_an_untouched,
        _own_an_untouched,
        _lose_an_id,
    ],
)
def test_the_integrity_check_sees(damage: Any) -> None:
    cache = KVCache(8)
    cache.release(fill(cache, list(range(40))))
    lease = fill(cache, list(range(100, 140)))
    assert problems(cache) == []
    damage(cache, lease)
    assert problems(cache)


def test_the_integrity_check_ends_when_work_comes() -> None:
    cache = KVCache(8)
    lease = fill(cache, list(range(100, 140)))
    _leak(cache, lease)
    assert problems(cache)
    assert problems(cache, interrupted=lambda: True) == []
