"""Responses that are kept for a while, in memory: each owner sees its own, and all of them together have a limit."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

OWNERS_SHARE = 4
"""One owner's responses take at most this part (a quarter) of the memory, so that it cannot push out all others'."""


class Stored(Struct, frozen=True):
    """A response object, and the items of its input, what came before included."""

    response: Mapping[str, Any]
    items: Sequence[Any]


class StoredResponses:
    """By owner and id; what has not been used for the longest time goes first. Lives on the event loop.

    Kept as JSON text: its length is what is counted.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self.total = 0
        """Bytes of all of them."""

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, owner: str, response: Mapping[str, Any], items: Sequence[Any]) -> bool:
        """Keep a response under its id, in place of an earlier state. False if it is too large to be kept."""
        data = json.dumps([response, items]).encode()
        self.drop(owner, response["id"])
        share = self._max_bytes // OWNERS_SHARE
        if len(data) > share:
            return False
        while self._bytes.get(owner, 0) + len(data) > share:
            self._forget(next(key for key in self._kept if key[0] == owner))
        while self.total + len(data) > self._max_bytes:
            self._forget(next(iter(self._kept)))
        self._kept[owner, response["id"]] = data
        self._bytes[owner] = self._bytes.get(owner, 0) + len(data)
        self.total += len(data)
        return True

    def get(self, owner: str, response_id: str) -> Stored | None:
        """A response; None if it was never kept, or not kept any more, or is another's."""
        data = self._kept.get((owner, response_id))
        if data is None:
            return None
        self._kept.move_to_end((owner, response_id))
        response, items = json.loads(data)
        return Stored(response, items)

    def drop(self, owner: str, response_id: str) -> bool:
        """Forget one. Whether it was there."""
        found = (owner, response_id) in self._kept
        if found:
            self._forget((owner, response_id))
        return found

    def _forget(self, key: tuple[str, str]) -> None:
        size = len(self._kept.pop(key))
        self.total -= size
        self._bytes[key[0]] -= size
        if not self._bytes[key[0]]:
            del self._bytes[key[0]]
