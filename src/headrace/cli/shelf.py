"""The model cache as the HTTP side wants it (`headrace.api.shelf.Shelf`): pull, remove and copy at clients' wish."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.cli.assembly import MEMORY_SHARE
from headrace.cli.hosting import Source
from headrace.cli.machine import available_memory
from headrace.cli.store import open_store
from headrace.config import Config, ResidencySettings, ServerSettings
from headrace.errors import Conflict, DownloadError, InvalidRequest, ModelError, ModelNotFound
from headrace.weights.store import Store, StoredModel

if TYPE_CHECKING:
    from headrace.api import Model, Models

_LOCAL = frozenset({"localhost", "::1"})
_HUBS = ("hf.co/", "huggingface.co/")


def may_manage(config: Config) -> bool:
    """Whether clients may change what is on the disk: as the settings say, and if they say auto, where only this
    machine can ask, or whoever asks needs a key."""
    settings = config.section(ServerSettings)
    if settings.manage_models != "auto":
        return settings.manage_models == "on"
    local = settings.host in _LOCAL or settings.host.startswith("127.")
    return local or bool(settings.api_key or settings.api_key_file)


def shelf_of(config: Config, models: Models) -> StoreShelf | None:
    """The shelf that clients may change; None if they may not."""
    return StoreShelf(config, models) if may_manage(config) else None


class StoreShelf:
    """Methods may be called on any thread."""

    def __init__(self, config: Config, models: Models) -> None:
        self._config = config
        self._models = models
        self._kept = {name for slot in models.slots for name in slot.names}

    def pull(self, name: str, progress: Callable[[int, int], None]) -> Model | None:
        """Fetch a model; returns it as one that can be served, None if it is served already.

        Raises:
            InvalidRequest: the name names nothing, or no model that can be served.
            DownloadError: it cannot be fetched.
        """
        try:
            stored = self._store().pull(_plain(name), progress)
            return None if self._served(stored) else self._model(stored.name)
        except DownloadError:
            raise
        except ModelError as error:
            raise InvalidRequest(f"pull model manifest: {error}", "model") from error

    def remove(self, name: str) -> None:
        """Delete a model from the cache.

        Raises:
            ModelNotFound: the cache has no such model.
            Conflict: the server was started to serve it.
        """
        stored = self._find(name)
        if stored.name in self._kept or name in self._kept:
            raise Conflict(f"{stored.name} is what this server was started to serve; it cannot be deleted")
        self._store().remove(stored.name)

    def copy(self, source: str, name: str) -> Model:
        """Give a model of the cache a second name; returns it as one that can be served.

        Raises:
            ModelNotFound: the cache has no ``source``.
            InvalidRequest: ``name`` is none that a model may have, or taken.
        """
        stored = self._find(source)
        try:
            return self._model(self._store().copy(stored.name, _plain(name)).name)
        except ModelError as error:
            raise InvalidRequest(str(error), "destination") from error

    def _store(self) -> Store:
        return open_store(self._config)

    def _find(self, name: str) -> StoredModel:
        try:
            return self._store().find(_plain(name))
        except ModelError as error:
            raise ModelNotFound(str(error), "model", name) from error

    def _served(self, stored: StoredModel) -> bool:
        try:
            self._models.find(stored.name)
        except ModelNotFound:
            return False
        return True

    def _model(self, name: str) -> Model:
        """Measured, so that it has a place in the memory when it is asked for."""
        from headrace.api import Model
        from headrace.residency import kv_shares

        settings = self._config.section(ResidencySettings)
        source = Source(self._config, name, name)
        budget = self._models.budget or int(MEMORY_SHARE * available_memory())
        found = source.measure(budget, 1)
        source.kv_bytes = source.kv_asked or kv_shares(budget, [found.footprint])[0]
        source.call(found.name, found.max_model_len)
        keep_alive = None if settings.keep_alive < 0 else settings.keep_alive
        version = source.look()
        return Model(
            source.names, int(time.time()), version, source.look, source.recorder_made, None, False, keep_alive
        )


def _plain(name: str) -> str:
    """Without what Ollama's users put around a name."""
    text = name.removesuffix(":latest")
    return next((text.removeprefix(hub) for hub in _HUBS if text.startswith(hub)), text)
