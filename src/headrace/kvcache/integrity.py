"""The books must balance: a check from first principles, cheap enough to run whenever the engine is idle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from headrace.kvcache.cache import KVCache
from headrace.types import BLOCK_SIZE


def problems(cache: KVCache, interrupted: Callable[[], bool] = lambda: False) -> list[str]:
    """What is wrong with the books of ``cache``, in words; empty when all is well. Changes nothing.

    O(blocks that were ever taken): tens of milliseconds for a pool that has been full. So it ends early, with what it
    has found so far, when ``interrupted``, which is asked now and then.

    Free, idle and used blocks add up to the pool and do not overlap; each block's references are its owners; idle
    blocks are indexed and free ones are not; each lease has the room it says it has.
    """
    pool, index = cache.pool, cache.index
    found = index.problems(interrupted)
    owners = Counter(block for lease in cache.leases for block in lease.blocks)
    untouched = range(pool.num_blocks - 1, pool.touched - 1, -1)  # where the stack of free blocks begins
    free = Counter(pool.free[len(untouched) :])
    if pool.free[: len(untouched)] != list(untouched) or any(pool.references[pool.touched :]):
        found.append(f"blocks from {pool.touched} on were never taken, and are not free")
    for block in range(pool.touched):
        if block % 1024 == 0 and interrupted():
            return found
        references = pool.references[block]
        states = free[block] + (block in pool.idle) + (references > 0)
        if references != owners[block]:
            found.append(f"block {block}: {references} references, {owners[block]} owners")
        if states != 1:
            found.append(f"block {block}: free {free[block]} times, idle {block in pool.idle}, in use {references > 0}")
        if references == 0 and (block in index) != (block in pool.idle):
            found.append(f"block {block}: unused, indexed {block in index}, idle {block in pool.idle}")
    for block in {*owners, *free, *pool.idle, *index}:
        if not 0 <= block < pool.touched:
            found.append(f"block {block} is not one of the {pool.touched} that were ever taken")
    for lease in cache.leases:
        if len(set(lease.blocks)) != len(lease.blocks):
            found.append("a lease holds a block twice")
        if lease.capacity != len(lease.blocks) * BLOCK_SIZE:
            found.append(f"a lease of {len(lease.blocks)} blocks says that it has room for {lease.capacity} tokens")
        if len(lease.chain) > len(lease.blocks):
            found.append(f"a lease of {len(lease.blocks)} blocks has {len(lease.chain)} of them indexed")
    return found
