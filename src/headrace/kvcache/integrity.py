"""The books must balance: a check from first principles, cheap enough to run whenever the engine is idle."""

from __future__ import annotations

from collections import Counter

from headrace.kvcache.cache import KVCache
from headrace.types import BLOCK_SIZE


def problems(cache: KVCache) -> list[str]:
    """What is wrong with the books of ``cache``, in words; empty when all is well. O(blocks), changes nothing.

    Free, idle and used blocks add up to the pool and do not overlap; each block's references are its owners; idle
    blocks are indexed and free ones are not; each lease has the room it says it has.
    """
    pool, index = cache.pool, cache.index
    found = index.problems()
    owners = Counter(block for lease in cache.leases for block in lease.blocks)
    free = Counter(pool.free)
    for block in range(pool.num_blocks):
        references = pool.references[block]
        states = free[block] + (block in pool.idle) + (references > 0)
        if references != owners[block]:
            found.append(f"block {block}: {references} references, {owners[block]} owners")
        if states != 1:
            found.append(f"block {block}: free {free[block]} times, idle {block in pool.idle}, in use {references > 0}")
        if references == 0 and (block in index) != (block in pool.idle):
            found.append(f"block {block}: unused, indexed {block in index}, idle {block in pool.idle}")
    for block in set(owners) | set(free) | set(pool.idle):
        if not 0 <= block < pool.num_blocks:
            found.append(f"block {block} is not in the pool")
    for lease in cache.leases:
        if len(set(lease.blocks)) != len(lease.blocks):
            found.append("a lease holds a block twice")
        if lease.capacity != len(lease.blocks) * BLOCK_SIZE:
            found.append(f"a lease of {len(lease.blocks)} blocks says that it has room for {lease.capacity} tokens")
        if len(lease.chain) > len(lease.blocks):
            found.append(f"a lease of {len(lease.blocks)} blocks has {len(lease.chain)} of them indexed")
    return found
