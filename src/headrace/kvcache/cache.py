"""Leases: what a sequence gets from the pool and the prefix index, and the one place where it gives it back."""

from __future__ import annotations

import os
from array import array

from msgspec import Struct

from headrace.kvcache.pool import BlockPool
from headrace.kvcache.prefix import BlockKeys, PrefixIndex
from headrace.types import BLOCK_SIZE


def blocks_for(num_tokens: int) -> int:
    """Blocks that ``num_tokens`` tokens fill, the last one perhaps in part."""
    return -(-num_tokens // BLOCK_SIZE)


class Lease:
    """The blocks that one sequence holds, in order: its block table.

    ::

        blocks    │ shared or own, full │ own, full │ own, filling │
        tokens    0 ··················· ··········· ·· computed ·· capacity
        chain     └── indexed: one entry id each ──┘

    Only the last block is written to, and it is never shared.
    """

    __slots__ = ("blocks", "capacity", "chain", "chainable")

    def __init__(self) -> None:
        self.blocks: array[int] = array("i")
        self.capacity = 0
        """Tokens that the blocks have room for."""
        self.chain: list[int] = []
        """Ids of the index entries with the contents of the first blocks (this lease's or equal ones)."""
        self.chainable = True
        """False once a block could not be indexed: none after it can be found either."""


class KVStats(Struct, frozen=True):
    """The pool in numbers: blocks in each state, and tokens looked up in and served by the prefix index."""

    total: int
    used: int
    cached: int
    query_tokens: int
    hit_tokens: int
    touched: int
    """Blocks that were ever taken."""

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return self.total - self.used - self.cached


class KVCache:
    """Hands out leases on ``num_blocks`` blocks. Not thread-safe: the step loop owns it."""

    def __init__(self, num_blocks: int, *, prefix_caching: bool = True, secret: bytes | None = None) -> None:
        self.index = PrefixIndex()
        self.pool = BlockPool(num_blocks, evict=self.index.forget)
        self.leases: set[Lease] = set()
        self.prefix_caching = prefix_caching
        self._secret = os.urandom(32) if secret is None else secret
        self._query_tokens = 0
        self._hit_tokens = 0

    @property
    def available(self) -> int:
        """Blocks that could be handed out now, dropping cached prefixes as needed."""
        return self.pool.available

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self.pool.num_blocks

    def keys(self, salt: str) -> BlockKeys:
        """The block keys of a new sequence, whose prefixes are shared under the same ``salt`` only."""
        return BlockKeys(self._secret, salt)

    def open(self, tokens: array[int], keys: BlockKeys, reuse: bool = True) -> Lease:
        """A lease that starts with the longest cached prefix of ``tokens``, none if not ``reuse``.

        At least the last token is left to compute, since the next one is chosen from its logits. Whole blocks only:
        the lease's ``capacity`` is the number of tokens that need not be computed.
        """
        lease = Lease()
        self.leases.add(lease)
        if not (reuse and self.prefix_caching):
            return lease
        parent: int | str = keys.salt
        for i in range((len(tokens) - 1) // BLOCK_SIZE):
            content = tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE].tobytes()
            entry = self.index.find(keys.at(i, tokens), parent, content)
            if entry is None:
                break
            self.pool.share(entry.block)
            lease.blocks.append(entry.block)
            lease.chain.append(entry.id)
            parent = entry.id
        lease.capacity = len(lease.blocks) * BLOCK_SIZE
        return lease

    def note_lookup(self, query_tokens: int, hit_tokens: int) -> None:
        """Count a lookup in the hit rate. Apart from `open`, which may be tried many times for one request."""
        self._query_tokens += query_tokens
        self._hit_tokens += hit_tokens

    def grow(self, lease: Lease, num_tokens: int) -> bool:
        """Make room for ``num_tokens`` tokens in all. All or nothing: False, and no change, if the pool is short."""
        missing = blocks_for(num_tokens) - len(lease.blocks)
        if missing > self.pool.available:
            return False
        for _ in range(missing):
            lease.blocks.append(self.pool.take())
        lease.capacity = len(lease.blocks) * BLOCK_SIZE
        return True

    def computed(self, lease: Lease, tokens: array[int], keys: BlockKeys, num_computed: int) -> None:
        """The KV of the first ``num_computed`` tokens has been computed: index the blocks that are full now."""
        if not self.prefix_caching:
            return
        chain = lease.chain
        while lease.chainable and (len(chain) + 1) * BLOCK_SIZE <= num_computed:
            i = len(chain)
            content = tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE].tobytes()
            parent = chain[-1] if chain else keys.salt
            entry_id = self.index.add(keys.at(i, tokens), parent, content, lease.blocks[i])
            if entry_id is None:
                lease.chainable = False
            else:
                chain.append(entry_id)

    def fork(self, lease: Lease, num_tokens: int) -> tuple[Lease, tuple[tuple[int, int], ...]] | None:
        """A second lease on the first ``num_tokens`` tokens of ``lease``, all computed. None if the pool is short.

        Full blocks are shared. A block that is filled in part would be written to by both, so it is copied: the
        caller must have the returned (source, destination) pairs applied before the next row is computed.
        """
        full, rest = divmod(num_tokens, BLOCK_SIZE)
        if rest and not self.pool.available:
            return None
        child = Lease()
        self.leases.add(child)
        for block in lease.blocks[:full]:
            self.pool.share(block)
        child.blocks = lease.blocks[:full]
        child.chain = lease.chain[:full]
        child.chainable = lease.chainable or len(lease.chain) >= full
        copies: tuple[tuple[int, int], ...] = ()
        if rest:
            child.blocks.append(self.pool.take())
            copies = ((lease.blocks[full], child.blocks[full]),)
        child.capacity = len(child.blocks) * BLOCK_SIZE
        return child, copies

    def release(self, lease: Lease) -> None:
        """Give all blocks of ``lease`` back. The only way back; the lease is of no use afterwards.

        Raises:
            KeyError: it was released before.
        """
        self.leases.remove(lease)
        # The last block first: of what is cached, ends of prefixes are evicted before their beginnings.
        for block in reversed(lease.blocks):
            self.pool.drop(block, keep=block in self.index)
        lease.blocks = array("i")
        lease.capacity = 0

    def stats(self) -> KVStats:
        """The pool in numbers."""
        return KVStats(
            total=self.pool.num_blocks,
            used=self.pool.used,
            cached=len(self.pool.idle),
            query_tokens=self._query_tokens,
            hit_tokens=self._hit_tokens,
            touched=self.pool.touched,
        )
