"""Models and their versions, on disk and in memory, as plain values."""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from headrace.api.cards import Card, unknown
from headrace.api.desk import Desk
from headrace.api.ports import EnginePort
from headrace.api.settings import Served, ServerSettings
from headrace.metrics import Recorder
from headrace.wire.sampling import usable_defaults

log = logging.getLogger("headrace.api")


class Hosted(Struct, frozen=True, eq=False):
    """A model that is in memory: everything that a call needs of it."""

    served: Served
    engine: EnginePort
    desk: Desk
    recorder: Recorder


def host(engine: EnginePort, served: Served, recorder: Recorder, settings: ServerSettings) -> Hosted:
    """A model with a desk of its own."""
    usable = usable_defaults(served.sampling_defaults)
    for name in served.sampling_defaults.keys() - usable.keys():
        log.warning("%s: the model's default for %s is not one that a request could have", served.names[0], name)
    return Hosted(replace(served, sampling_defaults=usable), engine, Desk(engine, recorder, settings), recorder)


class Loaded(Struct, frozen=True, eq=False):
    """A model in memory, how many bytes it may take there, and how to be rid of it."""

    hosted: Hosted
    bytes: int
    close: Callable[[], None]
    """Stops the engine and gives the memory back; may take a while. Called once."""
    kv_block_bytes: int = 0

    @property
    def held(self) -> int:
        """Bytes that it takes now: without the KV blocks that are reserved and were never used."""
        stats = self.hosted.engine.stats()
        return self.bytes - (stats.kv_blocks - stats.kv_blocks_touched) * self.kv_block_bytes


class Version(Struct, frozen=True, eq=False):
    """A model's files as they were found: ``load`` brings them into memory and takes at most ``bytes``.

    ``load`` runs on a thread of its own, and raises a `HeadraceError` that says why it could not.
    """

    bytes: int
    load: Callable[[], Loaded]
    max_model_len: int | None = None
    card: Callable[[], Card] = unknown
    """Reads headers at its first call, which may take a while."""


class Model(Struct, frozen=True, eq=False):
    """One model that a server knows. ``look`` finds its files as they are now, for a new version.

    ``loaded`` is the first version if it is in memory already, ``keep_alive`` the seconds that an unused model stays
    there (None for as long as there is room).
    """

    names: tuple[str, ...]
    """The first is its own."""
    created: int
    version: Version
    look: Callable[[], Version]
    recorder: Recorder
    loaded: Loaded | None = None
    pinned: bool = False
    keep_alive: float | None = None


def constant(hosted: Hosted, card: Callable[[], Card] = unknown) -> Model:
    """A model that is in memory for as long as the server runs, and belongs to somebody else."""
    loaded = Loaded(hosted, 0, lambda: None)
    version = Version(0, lambda: loaded, hosted.served.limits.max_model_len, card)
    served = hosted.served
    return Model(served.names, served.created, version, lambda: version, hosted.recorder, loaded, pinned=True)
