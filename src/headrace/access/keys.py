"""Keys as a file has them: one line each, a digest instead of the secret.

::

    # name:sha256:digest  then what differs from the defaults
    alice:sha256:9f86d08…
    batch:sha256:60303ae…  requests_per_minute=60 tokens_per_minute=100000 concurrent=4 tenant=alice
    ops:sha256:fd61a03…    scopes=metrics,admin

A plain SHA-256 is enough for secrets of 256 random bits, which is what `new_secret` makes: nobody can try them all.
"""

from __future__ import annotations

import enum
import hashlib
import re
import secrets

from msgspec import Struct

from headrace.errors import ConfigError

PREFIX = "hr-"
"""Every secret begins with it, so that scanners find secrets that were published by mistake."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(r"(?P<name>[^:\s]+):sha256:(?P<digest>[0-9a-fA-F]{64})(?P<rest>(\s+[a-z_]+=\S+)*)\s*")
MAX_LIMIT = 1_000_000_000


class Scope(enum.StrEnum):
    """What a key may be used for."""

    INFERENCE = "inference"
    METRICS = "metrics"
    ADMIN = "admin"


class Limits(Struct, frozen=True):
    """How much a key may ask for; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers together."""
    concurrent: int | None = None


class Key(Struct, frozen=True):
    """One key. Keys of one ``tenant`` share what the server keeps of their prompts, and their turn in its queue."""

    name: str
    digest: bytes
    tenant: str
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    limits: Limits = Limits()


def new_secret() -> str:
    """A secret nobody has: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: bytes) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret).digest()


def parse_keys(text: str) -> list[Key]:
    """The keys of a file; empty lines and comments (``#``) are left out.

    Raises:
        ConfigError: a line is wrong; the message has its number and nothing of its contents.
    """
    found: list[Key] = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key = _parse(stripped, number)
        for other in found:
            if key.name == other.name or key.digest == other.digest:
                raise ConfigError(f"line {number}: this key's name or digest is there already ({other.name})")
        found.append(key)
    return found


def _parse(line: str, number: int) -> Key:
    match = _LINE.fullmatch(line)
    if match is None or not NAME.fullmatch(match["name"]):
        raise ConfigError(f"line {number}: not of the form NAME:sha256:DIGEST [SETTING=VALUE]...")
    settings = dict(word.split("=", 1) for word in match["rest"].split())
    known = {"scopes", "tenant", *Limits.__struct_fields__}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigError(f"line {number}: no setting is called {unknown[0]}; known are {', '.join(sorted(known))}")
    tenant = settings.pop("tenant", match["name"])
    if not NAME.fullmatch(tenant):
        raise ConfigError(f"line {number}: tenant must be letters, digits and . _ -, at most 64")
    scopes = _scopes(settings.pop("scopes", Scope.INFERENCE), number)
    limits = Limits(**{name: _limit(value, name, number) for name, value in settings.items()})
    return Key(match["name"], bytes.fromhex(match["digest"]), tenant, scopes, limits)


def _scopes(value: str, number: int) -> frozenset[Scope]:
    try:
        return frozenset(Scope(word) for word in value.split(","))
    except ValueError:
        raise ConfigError(f"line {number}: scopes are {', '.join(Scope)}, separated by commas") from None


def _limit(value: str, name: str, number: int) -> int:
    if not re.fullmatch(r"\d{1,10}", value) or not 1 <= int(value) <= MAX_LIMIT:
        raise ConfigError(f"line {number}: {name} must be a whole number from 1 to {MAX_LIMIT}")
    return int(value)


def format_key(key: Key) -> str:
    """The line of a key."""
    words = [f"{key.name}:sha256:{key.digest.hex()}"]
    if key.tenant != key.name:
        words.append(f"tenant={key.tenant}")
    if key.scopes != {Scope.INFERENCE}:
        words.append("scopes=" + ",".join(sorted(key.scopes)))
    for name in Limits.__struct_fields__:
        limit = getattr(key.limits, name)
        if limit is not None:
            words.append(f"{name}={limit}")
    return " ".join(words)
