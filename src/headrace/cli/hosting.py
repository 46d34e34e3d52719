"""From settings to the models that a server hosts: which there are, how they share the memory, how each is loaded."""

from __future__ import annotations

import ctypes
import gc
import logging
import re
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from headrace.cli.assembly import MEMORY_SHARE, Assembly, assemble, context_of, model_name
from headrace.cli.backend import backend_options
from headrace.cli.machine import available_memory
from headrace.cli.phases import Phases
from headrace.cli.store import find_model
from headrace.cli.watermark import mark_of
from headrace.config import (
    BatchSettings,
    Config,
    ModelSettings,
    ResidencySettings,
    ServerSettings,
    SpeculationSettings,
)
from headrace.errors import ConfigError, MemoryPlanError
from headrace.types import BLOCK_SIZE
from headrace.weights import open_checkpoint

if TYPE_CHECKING:
    from headrace.api import Loaded, Models, Version
    from headrace.api import ServerSettings as ApiSettings
    from headrace.api.cards import Card
    from headrace.cli.words import ModelWords
    from headrace.metrics import Recorder
    from headrace.residency import Footprint

log = logging.getLogger("headrace.start")

SMALL_CONTEXT = 1024
"""Tokens of context for which a model must have room, however little memory there is."""
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:/-]{0,127})=(.+)")


class Measured(Struct, frozen=True):
    """What a model's files say of it before it is loaded."""

    name: str
    footprint: Footprint
    max_model_len: int


class Source:
    """One model of the command line: finds it, loads it, and looks for new versions of it.

    ``typed`` is what is to be found, ``given`` the name that it was given (NAME=MODEL). ``kv_bytes`` is its share of
    a budget, if there is one.
    """

    def __init__(self, config: Config, typed: str | None, given: str | None) -> None:
        self.typed = typed
        self.given = given
        self.names: tuple[str, ...] = ()
        self.kv_bytes: int | None = None
        self.recorder: Recorder | None = None
        self._config = config

    def measure(self, budget: int, models: int) -> Measured:
        """Read the headers of its files. A context that nobody asked for may be cut to what an equal part of ``budget``
        has room for.

        Raises:
            ModelError: it cannot be found, fetched or read.
        """
        from headrace.backends.cpu.backend import measure
        from headrace.residency import Footprint

        settings, batch = self._config.section(ModelSettings), self._config.section(BatchSettings)
        path = find_model(self._config, self.typed)
        checkpoint = open_checkpoint(path, max_model_len=settings.max_model_len, name=model_name(self.typed, path))
        length = context_of(checkpoint, settings.max_model_len)
        fixed, block = measure(checkpoint, **backend_options(self._config, length))
        context = floor = -(-length // BLOCK_SIZE) * block
        if settings.max_model_len is None:
            small = -(-min(length, SMALL_CONTEXT) // BLOCK_SIZE) * block
            floor = max(min(context, (budget // models - fixed) // 2), small)
        return Measured(checkpoint.name, Footprint(fixed, floor, context * batch.max_num_seqs), length)

    @property
    def recorder_made(self) -> Recorder:
        """Where its numbers are counted, whichever version of it is in memory."""
        if self.recorder is None:
            raise ConfigError(f"model: {self.typed} was neither measured nor loaded")
        return self.recorder

    @property
    def kv_asked(self) -> int | None:
        """The KV cache that the settings ask for, for each model."""
        return self._config.section(BatchSettings).kv_cache_memory

    def call(self, own: str, max_model_len: int, recorder: Recorder | None = None) -> None:
        """Settle its names, once its files have said what it is. ``recorder``: the one that its engine has already."""
        from headrace.metrics import Recorder

        served = self._config.section(ServerSettings).served_model_name
        self.names = (self.given,) if self.given else served or _names(self.typed, own)
        self.recorder = recorder or Recorder(self.names[0], max_model_len)
        self.recorder.model_name = self.names[0]

    def look(self) -> Version:
        """Its files as they are now.

        Raises:
            ModelError: they cannot be read any more.
        """
        from headrace.api import Version

        if self.kv_bytes is None:
            return Version(0, partial(self.load, None), card=self._card())
        found = self.measure(self.kv_bytes, 1)
        size = found.footprint.fixed + self.kv_bytes
        return Version(size, partial(self.load, size), found.max_model_len, self._card())

    def _card(self) -> Callable[[], Card]:
        def read() -> Card:
            from headrace.cli.cards import read_card

            return read_card(find_model(self._config, self.typed))

        return cache(read)

    def load(self, limit: int | None) -> Loaded:
        """Bring it into memory, of which it may take ``limit`` bytes."""
        made = self.assemble(limit, Phases(), lambda: None)
        try:
            made.words.prepare()
        except BaseException:
            made.close()
            raise
        return self.loaded(made)

    def assemble(self, limit: int | None, phases: Phases, meanwhile: Callable[[], None]) -> Assembly:
        """The model, ready to run."""
        made = assemble(self._config, phases, meanwhile, self.typed, limit, self.kv_bytes, self.recorder)
        if self.recorder is None:
            self.call(made.checkpoint.name, made.max_model_len, made.recorder)
        return made

    def loaded(self, assembly: Assembly) -> Loaded:
        """The model as the HTTP side wants it."""
        from headrace.api import Loaded, Served, host
        from headrace.wire.limits import Limits

        served = Served(
            names=self.names,
            words=assembly.words,
            limits=Limits(assembly.max_model_len, assembly.backend.vocab_size),
            created=int(time.time()),
            sampling_defaults=assembly.checkpoint.text.sampling_defaults,
            watermark=mark_of(self._config),
        )
        hosted = host(assembly.engine, served, assembly.recorder, api_settings(self._config))

        def close() -> None:
            assembly.close()
            _trim()

        return Loaded(hosted, assembly.bytes, close, assembly.backend.kv_block_bytes)


class Hosting(Struct, frozen=True):
    """The models of one server; what counts for the server itself; and what there is to say of its first model."""

    models: Models
    recorder: Recorder
    about: str
    words: Sequence[ModelWords]
    """Of the models that are loaded."""

    def prepare(self) -> None:
        """What can wait until requests are taken: chat templates.

        Raises:
            ModelFileError: one of them does not compile.
        """
        for words in self.words:
            words.prepare()


def host_models(config: Config, phases: Phases, meanwhile: Callable[[], None]) -> Hosting:
    """Find all models, and load the first one and those that are pinned.

    Raises:
        ModelError, MemoryPlanError, ConfigError: a model cannot be found or held; the message says what to do.
    """
    settings, sources = config.section(ResidencySettings), _sources(config)
    budget = settings.memory_budget
    if budget is None and len(sources) > 1:
        budget = int(MEMORY_SHARE * available_memory())
    sizes: Sequence[int | None] = [None]
    if budget is not None:
        with phases.phase("plan"):
            sizes = _share(sources, budget, frozenset(settings.pin))
    assemblies: list[Assembly | None] = []
    try:
        for index, (source, size) in enumerate(zip(sources, sizes, strict=True)):
            wanted = index == 0 or not frozenset(settings.pin).isdisjoint(source.names)
            assemblies.append(source.assemble(size, phases, meanwhile) if wanted else None)
        return _hosting(config, sources, assemblies, budget)
    except BaseException:
        for each in assemblies:
            if each is not None:
                each.close()
        raise


def _hosting(
    config: Config, sources: Sequence[Source], assemblies: Sequence[Assembly | None], budget: int | None
) -> Hosting:
    from headrace.api import Model, Models

    settings = config.section(ResidencySettings)
    _check_names(sources, settings.pin)
    keep_alive = None if settings.keep_alive < 0 else settings.keep_alive
    models: list[Model] = []
    for source, assembly in zip(sources, assemblies, strict=True):
        loaded = None if assembly is None else source.loaded(assembly)
        pinned = not frozenset(settings.pin).isdisjoint(source.names)
        models.append(
            Model(
                source.names,
                int(time.time()),
                source.look(),
                source.look,
                source.recorder_made,
                loaded,
                pinned,
                keep_alive,
            )
        )
    words = [assembly.words for assembly in assemblies if assembly is not None]
    return Hosting(Models(models, api_settings(config), budget), sources[0].recorder_made, _about(assemblies[0]), words)


def _about(assembly: Assembly | None) -> str:
    if assembly is None:
        return ""
    name, spec = assembly.checkpoint.name, assembly.checkpoint.spec
    return (
        f"{name}: {spec.architecture}, {spec.parameters / 1e6:.1f} M parameters, context {assembly.max_model_len},"
        f" kernels {assembly.backend.isa}, activations {assembly.backend.activations}"
    )


def api_settings(config: Config) -> ApiSettings:
    """The HTTP side's numbers."""
    from headrace.api import ServerSettings as ApiSettings

    settings = config.section(ServerSettings)
    return ApiSettings(
        api_keys=settings.api_key,
        api_key_file=settings.api_key_file,
        share_prefixes=settings.share_prefix_cache,
        request_timeout=settings.request_timeout or None,
        max_stored_bytes=settings.response_store,
        grace_period=settings.grace_period,
    )


def _sources(config: Config) -> list[Source]:
    typed = config.section(ModelSettings).model
    if len(typed) > 1:
        if config.section(ServerSettings).served_model_name:
            raise ConfigError("served_model_name is for one model; name each of several with NAME=MODEL")
        if config.section(SpeculationSettings).speculative_model:
            raise ConfigError("speculative_model is for one model; several can use --speculative-method ngram")
    found = []
    for word in typed or (None,):
        match = None if word is None or Path(word).exists() else _NAMED.fullmatch(word)
        found.append(Source(config, word, None) if match is None else Source(config, match[2], match[1]))
    return found


def _share(sources: Sequence[Source], budget: int, pinned: frozenset[str]) -> list[int]:
    """Give each model its share of the budget, and log the plan. Returns what each may take in all."""
    from headrace.engine.memory import format_bytes
    from headrace.residency import kv_shares

    found = [source.measure(budget, len(sources)) for source in sources]
    shares = kv_shares(budget, [each.footprint for each in found])
    sizes = []
    log.info("memory: %s for %d models", format_bytes(budget), len(sources))
    for index, (source, each, kv) in enumerate(zip(sources, found, shares, strict=True)):
        asked = source.kv_asked
        source.kv_bytes = kv if asked is None else asked
        source.call(each.name, each.max_model_len)
        size = each.footprint.fixed + source.kv_bytes
        when = "pinned" if not pinned.isdisjoint(source.names) else "at the start" if index == 0 else "when asked for"
        parts = (source.names[0], format_bytes(size), format_bytes(each.footprint.fixed), format_bytes(source.kv_bytes))
        log.info("memory: %s: %s (weights and activations %s, KV cache %s), loaded %s", *parts, when)
        if size > budget:
            raise MemoryPlanError(
                f"{source.names[0]} takes {format_bytes(size)}, and memory_budget is {format_bytes(budget)};"
                " raise it, or lower --max-model-len"
            )
        sizes.append(size)
    resident = sum(size for size, source in zip(sizes, sources, strict=True) if not pinned.isdisjoint(source.names))
    log.info(
        "memory: %s", "all fit together" if sum(sizes) <= budget else "they do not all fit together: they take turns"
    )
    if resident > budget:
        raise MemoryPlanError(
            f"the pinned models take {format_bytes(resident)}, and memory_budget is {format_bytes(budget)}"
        )
    return sizes


def _check_names(sources: Sequence[Source], pinned: Sequence[str]) -> None:
    names = [name for source in sources for name in source.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"model: two models are called {twice[0]}; name them with NAME=MODEL")
    unknown = sorted(set(pinned) - set(names))
    if unknown:
        raise ConfigError(f"pin: no model is called {unknown[0]}; there are {', '.join(names)}")


def _names(typed: str | None, name: str) -> tuple[str, ...]:
    """What requests may call the model when nobody said: its name, and the alias that it was served by."""
    return (name,) if typed is None or "/" in typed or typed in (name, ".", "..") else (name, typed)


def _trim() -> None:
    """Give freed memory back to the system: circles that the model left, then what the C library keeps. Not what was
    there at the start, which is frozen: looking through that would hold up every stream for 50 ms."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # another C library than GNU's
        return
