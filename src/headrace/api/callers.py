"""Who is calling: found out once, by the guards, and handed to whatever needs to know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from headrace.access import Key, Keyring, Quota, Scope, digest_of, parse_keys
from headrace.api.ports import Scope as Exchange
from headrace.api.settings import ServerSettings
from headrace.errors import ConfigError

log = logging.getLogger("headrace.keys")
POLL = 1.0
"""Seconds between two looks at the file of keys."""


class Caller(Struct, frozen=True):
    """``client`` is whose turn it is in the queue; ``tenant`` keeps what the server remembers of prompts apart from
    other tenants'; ``quota`` is what is left of it."""

    client: str = ""
    tenant: str = ""
    quota: Quota | None = None

    @property
    def spend(self) -> Callable[[int], None] | None:
        """Where the tokens of prompts and answers are to be told; None if nobody counts them."""
        quota = self.quota
        if quota is None or quota.limits.tokens_per_minute is None:
            return None
        return lambda tokens: quota.spend(tokens, time.monotonic())


ANYONE = Caller()


def caller_of(scope: Exchange) -> Caller:
    """Who is calling, as the guards found."""
    caller: Caller = scope.get("headrace.caller", ANYONE)
    return caller


class Keys:
    """The valid keys: those of the settings, and those of a file that is read again when it has changed."""

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            ConfigError: it cannot be read, or a line of it is wrong.
        """
        everything = frozenset(Scope)
        self._given = [
            Key(f"key-{index}", digest_of(key.encode()), f"key-{index}", everything)
            for index, key in enumerate(settings.api_keys)
        ]
        self._file = settings.api_key_file
        self._clock = clock
        self._stamp: tuple[int, int, int] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.ring = Keyring([*self._given, *self._read()], clock())

    @property
    def asked_for(self) -> bool:
        """Whether callers must have one. A file without keys lets nobody in, not everybody."""
        return bool(self._given) or self._file is not None

    def refresh(self) -> None:
        """Read the file again. If it is wrong, the keys stay what they were, and the log says so."""
        try:
            self.ring.replace([*self._given, *self._read()], self._clock())
            log.info("%d keys are valid", len(self.ring))
        except ConfigError as error:
            log.error("the keys stay as they were: %s", error)

    def start(self) -> None:
        """Look at the file from time to time; must be called on the event loop."""
        if self._file is not None:
            self._watch = asyncio.create_task(self._look_after(self._file))

    def stop(self) -> None:
        """Look no more."""
        if self._watch is not None:
            self._watch.cancel()

    def _read(self) -> list[Key]:
        if self._file is None:
            return []
        try:
            self._stamp = _stamp(self._file)
            found = parse_keys(self._file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"api_key_file: cannot read {self._file}: {reason}") from None
        except ConfigError as error:
            raise ConfigError(f"api_key_file: {self._file}: {error}") from None
        taken = {key.name for key in self._given} | {key.tenant for key in self._given}
        for key in found:
            if key.name in taken or key.tenant in taken:
                raise ConfigError(f"api_key_file: {self._file}: {key.name} is the name of a key of --api-key")
        return found

    async def _look_after(self, file: Path) -> None:
        while True:
            await asyncio.sleep(POLL)
            try:
                stamp = await asyncio.to_thread(_stamp, file)
            except OSError:  # gone, or on its way: what is valid stays so until there is a file again
                continue
            if stamp != self._stamp:
                self.refresh()


def _stamp(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
