"""Who may ask for what, and how much of it: keys, scopes and quotas, without files or a clock of their own."""

from headrace.access.keyring import Account, Keyring
from headrace.access.keys import Key, Limits, Scope, digest_of, format_key, new_secret, parse_keys
from headrace.access.quotas import Bucket, Quota

__all__ = [
    "Account",
    "Bucket",
    "Key",
    "Keyring",
    "Limits",
    "Quota",
    "Scope",
    "digest_of",
    "format_key",
    "new_secret",
    "parse_keys",
]
