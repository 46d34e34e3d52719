"""Token buckets: how much may be asked for per minute, and how long to wait when it was too much."""

from __future__ import annotations

from msgspec import Struct

from headrace.access.keys import Limits
from headrace.errors import RateLimited


class Bucket(Struct):
    """Fills evenly with ``per_minute`` units a minute, and holds one minute's worth. Times are monotonic seconds.

    Over any stretch of time no more than that rate and one bucket can be taken, and a debt: what is known only
    afterwards (the tokens of an answer) is taken without asking, and has to be filled up again.
    """

    per_minute: float
    level: float
    filled: float
    """When ``level`` was true."""

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` (at most a bucket) is there; 0 if it is."""
        self._fill(now)
        return max(amount - self.level, 0.0) * 60 / self.per_minute

    def take(self, amount: float, now: float) -> None:
        """Take it, whether it is there or not."""
        self._fill(now)
        self.level -= amount

    def _fill(self, now: float) -> None:
        passed = max(now - self.filled, 0.0)
        self.level = min(self.level + passed * self.per_minute / 60, self.per_minute)
        self.filled = max(now, self.filled)


class Quota:
    """What one key has left. Not thread-safe: it lives on the event loop."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.running = 0
        self._requests = _full(limits.requests_per_minute, now)
        self._tokens = _full(limits.tokens_per_minute, now)

    def enter(self, now: float) -> None:
        """A request begins.

        Raises:
            RateLimited: with the seconds after which it would be taken. Nothing has been counted then.
        """
        if self.limits.concurrent is not None and self.running >= self.limits.concurrent:
            raise RateLimited(f"this key may have {self.limits.concurrent} requests running at once", 1.0)
        requests = 0.0 if self._requests is None else self._requests.wait(1, now)
        tokens = 0.0 if self._tokens is None else self._tokens.wait(1, now)
        if requests > 0 and requests >= tokens:
            raise RateLimited(f"this key may make {self.limits.requests_per_minute} requests per minute", requests)
        if tokens > 0:
            raise RateLimited(f"this key may use {self.limits.tokens_per_minute} tokens per minute", tokens)
        if self._requests is not None:
            self._requests.take(1, now)
        self.running += 1

    def leave(self) -> None:
        """A request ended."""
        self.running -= 1

    def spend(self, tokens: int, now: float) -> None:
        """Tokens of a prompt or of an answer."""
        if self._tokens is not None:
            self._tokens.take(tokens, now)

    def change(self, limits: Limits, now: float) -> None:
        """Other limits from now on. What was used up under the old ones stays used up, in proportion."""
        self._requests = _resized(self._requests, limits.requests_per_minute, now)
        self._tokens = _resized(self._tokens, limits.tokens_per_minute, now)
        self.limits = limits


def _full(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, per_minute, now)


def _resized(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if bucket is None or per_minute is None:
        return _full(per_minute, now)
    bucket.wait(0, now)
    return Bucket(per_minute, bucket.level / bucket.per_minute * per_minute, now)
