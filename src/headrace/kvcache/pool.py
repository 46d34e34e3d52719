"""The blocks themselves: who refers to each, which are free, which are idle but worth keeping."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable


class BlockPool:
    """Every block is in exactly one of three states.

    ::

        free ──take──▶ in use (references ≥ 1) ──drop, not kept──▶ free
         ▲                 │        ▲
         │          drop, kept    share
         │                 ▼        │
         └──── taken ──── idle (references = 0, contents kept, oldest first)

    `take` uses free blocks first and then the longest idle ones, calling ``evict`` for each of those so that whoever
    knows its contents forgets them. Every operation is O(1) per block.
    """

    def __init__(self, num_blocks: int, evict: Callable[[int], None]) -> None:
        if num_blocks < 1:
            raise ValueError(f"a pool needs at least one block, not {num_blocks}")
        self.num_blocks = num_blocks
        self.free = list(range(num_blocks - 1, -1, -1))  # a stack: the block freed last is the warmest
        self.idle: OrderedDict[int, None] = OrderedDict()  # a dict's first key is O(n) to find after deletions
        self.references = array("i", [0]) * num_blocks
        self.touched = 0
        """Blocks that were ever taken: the first so many. The memory of the others is only reserved."""
        self._evict = evict

    @property
    def available(self) -> int:
        """Blocks that `take` could hand out now."""
        return len(self.free) + len(self.idle)

    @property
    def used(self) -> int:
        """Blocks that someone refers to."""
        return self.num_blocks - len(self.free) - len(self.idle)

    def take(self) -> int:
        """A block for one new owner, its contents undefined.

        Raises:
            IndexError: there is none; look at `available` first.
        """
        if self.free:
            block = self.free.pop()
        elif self.idle:
            block, _ = self.idle.popitem(last=False)
            self._evict(block)
        else:
            raise IndexError("no block is available")
        self.references[block] = 1
        if block >= self.touched:
            self.touched = block + 1
        return block

    def share(self, block: int) -> None:
        """One more owner for a block that is in use or idle."""
        if self.references[block] == 0:
            del self.idle[block]  # KeyError for a free block: its contents are gone
        self.references[block] += 1

    def drop(self, block: int, keep: bool) -> None:
        """One owner less; the last one leaves the block idle if it is worth keeping, else free.

        Raises:
            ValueError: the block has no owner.
        """
        count = self.references[block]
        if count <= 0:
            raise ValueError(f"block {block} is released but has no owner")
        self.references[block] = count - 1
        if count == 1:
            if keep:
                self.idle[block] = None
            else:
                self.free.append(block)
