"""The keys that are valid now, and what each has left of its quota."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from msgspec import Struct

from headrace.access.keys import Key, digest_of
from headrace.access.quotas import Quota


class Account(Struct, eq=False):
    """One key in use."""

    key: Key
    quota: Quota


class Keyring:
    """Looked at by every request, replaced when the file changes."""

    def __init__(self, keys: Sequence[Key] = (), now: float = 0.0) -> None:
        self._accounts: list[Account] = []
        self.replace(keys, now)

    def __len__(self) -> int:
        return len(self._accounts)

    def find(self, secret: bytes) -> Account | None:
        """Whose secret this is. Digests are compared in constant time, and all of them every time: neither a near
        miss nor a key's place in the list can be told by the clock."""
        given, found = digest_of(secret), None
        for account in self._accounts:
            if hmac.compare_digest(given, account.key.digest):
                found = account
        return found

    def replace(self, keys: Sequence[Key], now: float) -> None:
        """Valid from now on are these and no others. A key that keeps its name keeps what it has used up."""
        known = {account.key.name: account for account in self._accounts}
        self._accounts = []
        for key in keys:
            account = known.get(key.name)
            if account is None:
                account = Account(key, Quota(key.limits, now))
            else:
                account.key = key
                account.quota.change(key.limits, now)
            self._accounts.append(account)
