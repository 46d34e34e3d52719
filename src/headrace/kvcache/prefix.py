"""The prefix index: finished blocks, found by what they hold and everything before it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import NamedTuple

from headrace.types import BLOCK_SIZE


class BlockKeys:
    """The keys of a sequence's full blocks, each hashed once: key[i] = H(key[i-1], tokens of block i).

    H is BLAKE2b under a random key of this process: nobody outside can compute or aim for a key. The chain starts from
    the salt, so equal tokens under different salts share no key.
    """

    __slots__ = ("_keys", "_secret", "salt")

    def __init__(self, secret: bytes, salt: str, keys: list[bytes] | None = None) -> None:
        self._secret = secret
        self.salt = salt
        root = blake2b(salt.encode("utf-8", "surrogatepass"), key=secret, digest_size=16, person=b"salt")
        self._keys = keys or [root.digest()]

    def at(self, block: int, tokens: array[int]) -> bytes:
        """The key of the ``block``-th block of ``tokens``, which must be full. Hashes what was not hashed yet."""
        keys = self._keys
        for i in range(len(keys) - 1, block + 1):
            content = tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE].tobytes()
            keys.append(blake2b(keys[i] + content, key=self._secret, digest_size=16).digest())
        return keys[block + 1]

    def prefix(self, blocks: int) -> BlockKeys:
        """The keys of another sequence that shares the first ``blocks`` blocks with this one."""
        return BlockKeys(self._secret, self.salt, self._keys[: blocks + 1])


class Entry(NamedTuple):
    """A block whose contents are known. ``parent`` is the id of the entry before it; a first block has its salt."""

    id: int
    parent: int | str
    tokens: bytes
    block: int


class PrefixIndex:
    """Entries by key. A key alone proves nothing: `find` compares the tokens and the parent too.

    So even if two keys were equal, a block could never stand in for another one.
    """

    def __init__(self) -> None:
        self._by_key: dict[bytes, Entry] = {}
        self._key_of: dict[int, bytes] = {}  # block → key
        self._live: set[int] = set()  # ids of the entries
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[int]:
        return iter(self._key_of)

    def __contains__(self, block: int) -> bool:
        return block in self._key_of

    def find(self, key: bytes, parent: int | str, tokens: bytes) -> Entry | None:
        """The entry that holds exactly ``tokens`` after ``parent``, if there is one."""
        entry = self._by_key.get(key)
        if entry is None or entry.tokens != tokens or entry.parent != parent:
            return None
        return entry

    def add(self, key: bytes, parent: int | str, tokens: bytes, block: int) -> int | None:
        """Know that ``block`` holds the KV of ``tokens`` after ``parent``; it must have been computed.

        Returns the entry's id, an earlier entry's id if the same contents are known already (``block`` then stays
        unknown), or None if the entry could never be found: its key is taken or its parent has been forgotten.
        """
        known = self._by_key.get(key)
        if known is not None:
            return known.id if known.tokens == tokens and known.parent == parent else None
        if isinstance(parent, int) and parent not in self._live:
            return None
        entry = Entry(self._next_id, parent, tokens, block)
        self._next_id += 1
        self._by_key[key] = entry
        self._key_of[block] = key
        self._live.add(entry.id)
        return entry.id

    def forget(self, block: int) -> None:
        """Know nothing of ``block`` any more."""
        key = self._key_of.pop(block)
        self._live.discard(self._by_key.pop(key).id)

    def problems(self, interrupted: Callable[[], bool]) -> list[str]:
        """What is inconsistent inside; empty when all is well, or when ``interrupted`` before anything was found."""
        found = []
        if len(self._by_key) != len(self._key_of) or len(self._by_key) != len(self._live):
            found.append(f"index: {len(self._by_key)} keys, {len(self._key_of)} blocks, {len(self._live)} ids")
        for number, (block, key) in enumerate(self._key_of.items()):
            if number % 1024 == 0 and interrupted():
                break
            entry = self._by_key.get(key)
            if entry is None or entry.block != block or entry.id not in self._live:
                found.append(f"index: block {block} and its entry disagree")
        return found
