"""Random operations on the KV cache against a model made of plain lists and dicts, the books checked after each."""

from __future__ import annotations

from array import array

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from headrace.kvcache.cache import KVCache, Lease, blocks_for
from headrace.kvcache.integrity import problems
from headrace.kvcache.prefix import BlockKeys
from headrace.types import BLOCK_SIZE

NUM_BLOCKS = 12
TOKENS = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=4).flatmap(
    lambda firsts: st.integers(0, BLOCK_SIZE - 1).map(lambda tail: [t for f in firsts for t in [f] * 16] + [3] * tail)
)


class Holder:
    """A sequence: its tokens, how many of them are computed, its lease."""

    def __init__(self, tokens: list[int], salt: str, keys: BlockKeys, lease: Lease) -> None:
        self.tokens = array("i", tokens)
        self.salt = salt
        self.keys = keys
        self.lease = lease
        self.computed = lease.capacity


class Books(RuleBasedStateMachine):
    """``contents`` is the brute-force model: what each block was last made to hold, by (salt, all tokens up to it)."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(NUM_BLOCKS, secret=b"test")
        self.contents: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.live: list[Holder] = []

    def content(self, holder: Holder, block: int) -> tuple[str, tuple[int, ...]]:
        return holder.salt, tuple(holder.tokens[: (block + 1) * BLOCK_SIZE])

    @rule(target=holders, tokens=TOKENS, salt=st.sampled_from(["", "tenant"]), reuse=st.booleans())
    def open(self, tokens: list[int], salt: str, reuse: bool) -> Holder:
        keys = self.cache.keys(salt)
        holder = Holder(tokens, salt, keys, self.cache.open(array("i", tokens), keys, reuse))
        assert holder.computed < len(tokens), "the last token is always computed"
        assert reuse or not holder.lease.blocks
        for i, block in enumerate(holder.lease.blocks):
            assert self.contents[block] == self.content(holder, i), "a hit on other contents"
        self.live.append(holder)
        return holder

    @rule(holder=holders, count=st.integers(0, 40))
    def grow_and_compute(self, holder: Holder, count: int) -> None:
        if holder not in self.live:
            return
        target = min(holder.computed + count, len(holder.tokens))
        missing = blocks_for(target) - len(holder.lease.blocks)
        before, available = len(holder.lease.blocks), self.cache.available
        grown = self.cache.grow(holder.lease, target)
        assert grown == (missing <= available)
        if not grown:
            assert len(holder.lease.blocks) == before
            return
        for block in holder.lease.blocks[before:]:
            self.contents.pop(block, None)
        holder.computed = max(holder.computed, target)
        for i in range(holder.computed // BLOCK_SIZE):
            self.contents[holder.lease.blocks[i]] = self.content(holder, i)
        self.cache.computed(holder.lease, holder.tokens, holder.keys, holder.computed)

    @rule(target=holders, holder=holders, drop=st.integers(0, 40))
    def fork(self, holder: Holder, drop: int) -> Holder:
        keep = max(holder.computed - drop, 0)
        if holder not in self.live:
            return holder
        available = self.cache.available
        forked = self.cache.fork(holder.lease, keep)
        assert (forked is None) == (keep % BLOCK_SIZE > 0 and available == 0)
        if forked is None:
            return holder
        lease, copies = forked
        full = keep // BLOCK_SIZE
        assert lease.blocks[:full] == holder.lease.blocks[:full]
        assert (
            copies == tuple(zip(holder.lease.blocks[full : full + 1], lease.blocks[full:], strict=False))[: keep % 16]
        )
        for _, copy in copies:
            assert copy not in holder.lease.blocks
            self.contents.pop(copy, None)
        child = Holder(list(holder.tokens), holder.salt, holder.keys.prefix(full), lease)
        child.computed = keep
        self.live.append(child)
        return child

    @rule(holder=consumes(holders))
    def release(self, holder: Holder) -> None:
        if holder in self.live:
            self.live.remove(holder)
            self.cache.release(holder.lease)

    @invariant()
    def books_balance(self) -> None:
        assert problems(self.cache) == []
        stats = self.cache.stats()
        held = {block for holder in self.live for block in holder.lease.blocks}
        assert stats.used == len(held)
        assert stats.free + stats.cached + stats.used == NUM_BLOCKS
        assert self.cache.available == stats.free + stats.cached
        assert max((stats.used + stats.cached, *(block + 1 for block in held))) <= stats.touched <= NUM_BLOCKS

    @invariant()
    def nobody_writes_to_a_shared_block(self) -> None:
        for holder in self.live:
            for block in holder.lease.blocks[holder.computed // BLOCK_SIZE :]:
                assert self.cache.pool.references[block] == 1

    def teardown(self) -> None:
        for holder in self.live:
            self.cache.release(holder.lease)
        assert self.cache.pool.used == 0
        assert problems(self.cache) == []


Books.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
TestBooks = Books.TestCase
