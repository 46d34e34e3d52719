"""From settings to a running engine: the rooms are built here, once, and passed to each other."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from headrace.cli.backend import backend_options
from headrace.cli.beside import Beside
from headrace.cli.machine import available_memory
from headrace.cli.phases import Phases
from headrace.cli.speculation import Drafting, prepare
from headrace.cli.store import find_model
from headrace.config import BatchSettings, Config, ModelSettings, ServerSettings
from headrace.errors import ConfigError
from headrace.types import BLOCK_SIZE, MemoryItem, MemoryPlan
from headrace.weights import Checkpoint, open_checkpoint
from headrace.weights.spec import ModelSpec

if TYPE_CHECKING:
    from headrace.backends.cpu.backend import CpuBackend
    from headrace.cli.words import ModelWords
    from headrace.engine.engine import Engine
    from headrace.metrics import Recorder

log = logging.getLogger("headrace.start")

ATTENTION_COST = 2
"""How many times as long a multiplication of attention takes as one of a linear layer: exponentials, small tiles."""

MEMORY_SHARE = 0.9
"""Of the memory that is there: the rest is for the operating system, sockets and prompts on their way."""


class Assembly(Struct, frozen=True):
    """A model that is ready to run. `close` ends it."""

    checkpoint: Checkpoint
    words: ModelWords
    backend: CpuBackend
    engine: Engine
    recorder: Recorder
    max_model_len: int
    drafting: Drafting
    bytes: int
    """What it may take in memory, its KV cache full."""

    def close(self) -> None:
        """Stop the engine, then give the models' memory back."""
        self.engine.stop()
        self.drafting.close()
        self.backend.close()


def assemble(
    config: Config,
    phases: Phases,
    meanwhile: Callable[[], None] = lambda: None,
    model: str | None = None,
    limit: int | None = None,
    kv_bytes: int | None = None,
    recorder: Recorder | None = None,
) -> Assembly:
    """Find, read and load a model, divide the memory, build the engine (not started). Its chat template is compiled at
    its first use, or by `ModelWords.prepare` when there is time.

    ``meanwhile`` runs beside the loading of the weights, which leaves the interpreter free: what the caller will need
    next is best imported there. The model may take ``limit`` bytes, ``kv_bytes`` of them for its KV cache; None for
    what the machine has and the settings say. ``recorder`` None makes a new one.

    Raises:
        ModelError: the model cannot be found, fetched or read.
        MemoryPlanError: it does not fit; the message has the itemised plan and one fix.
        ConfigError: settings that contradict each other or the model.
    """
    settings, batch = config.section(ModelSettings), config.section(BatchSettings)
    if batch.max_num_seqs > batch.max_num_batched_tokens:
        raise ConfigError(
            f"max_num_seqs ({batch.max_num_seqs}) is above max_num_batched_tokens ({batch.max_num_batched_tokens}):"
            " each running sequence needs one token of every step"
        )
    with phases.phase("find"):
        path = find_model(config, model)
    with phases.phase("read"):
        checkpoint = open_checkpoint(path, max_model_len=settings.max_model_len, name=model_name(model, path))
    length = context_of(checkpoint, settings.max_model_len)
    beside = Beside(lambda: _words(checkpoint, phases, meanwhile))
    with phases.phase("load"):
        backend = _load(checkpoint, config, length)
    checkpoint = replace(checkpoint, tensors={})  # the backend has its own copy: the files need not stay in memory
    drafting = Drafting()
    try:
        words = beside.result()
        drafting = prepare(config, words, backend.vocab_size, length)
        with phases.phase("memory"):
            kv_bytes = batch.kv_cache_memory if kv_bytes is None else kv_bytes
            fixed = settings.max_model_len is not None
            plan = _divide(backend, drafting, batch.max_num_seqs, length, limit, kv_bytes, fixed=fixed)
            backend.allocate_kv(plan.kv_blocks)
            length = min(length, plan.kv_blocks * BLOCK_SIZE)
        recorder = recorder or _recorder(config, checkpoint.name, length)
        engine = _engine(config, checkpoint, backend, drafting, plan, length, recorder)
    except BaseException:
        drafting.close()
        backend.close()
        raise
    return Assembly(checkpoint, words, backend, engine, recorder, length, drafting, plan.limit - plan.left)


def context_of(checkpoint: Checkpoint, asked: int | None) -> int:
    """The longest context in tokens."""
    most = checkpoint.spec.max_positions
    if asked is not None and asked > most:
        raise ConfigError(f"max_model_len: {asked} is above the {most} tokens that {checkpoint.name} was made for")
    return asked or most


def model_name(model: str | None, path: Path) -> str | None:
    """A hub id is the model's name, as it is everywhere else; other models are called after their file."""
    return model if model is not None and "/" in model and Path(model).expanduser() != path else None


def _words(checkpoint: Checkpoint, phases: Phases, meanwhile: Callable[[], None]) -> ModelWords:
    """On its own thread. Its imports are part of the work."""
    with phases.phase("tokenizer"):
        from headrace.cli.words import ModelWords

        words = ModelWords(checkpoint.text, checkpoint.spec.vocab_size)
    meanwhile()
    return words


def _load(checkpoint: Checkpoint, config: Config, length: int) -> CpuBackend:
    from headrace.backends.cpu.backend import load

    return load(checkpoint, progress=_load_progress(checkpoint.name), **backend_options(config, length))


def _load_progress(name: str) -> Callable[[float], None] | None:
    if not sys.stderr.isatty():
        return None

    def report(share: float) -> None:
        print(f"\rloading {name}: {share:4.0%}", end="" if share < 1 else "\r\x1b[K", file=sys.stderr, flush=True)

    return report


def _divide(
    backend: CpuBackend,
    drafting: Drafting,
    max_num_seqs: int,
    length: int,
    limit: int | None,
    kv_bytes: int | None,
    *,
    fixed: bool,
) -> MemoryPlan:
    """The memory plan, logged. A context that nobody asked for may be cut to what fits; one asked for may not."""
    from headrace.engine.memory import format_plan, plan_memory, require

    resident = (*(item for item in backend.memory() if item.bytes), *drafting.resident)
    if limit is None:
        limit = int(MEMORY_SHARE * available_memory()) + sum(item.bytes for item in resident)
    allocated: tuple[MemoryItem, ...] = (*resident, *drafting.reserved)
    block = backend.kv_block_bytes
    plan = plan_memory(limit, allocated, block, length, max_num_seqs, kv_bytes)
    if plan.suggestion is not None and not fixed and plan.kv_blocks > 0:
        log.warning("the context is cut from %d to %d tokens: that is what fits", length, plan.kv_blocks * BLOCK_SIZE)
        plan = plan_memory(limit, allocated, block, plan.kv_blocks * BLOCK_SIZE, max_num_seqs, kv_bytes)
    require(plan)
    for line in format_plan(plan).splitlines():
        log.info("memory: %s", line)
    return plan


def _context_unit(spec: ModelSpec) -> float:
    """Positions of context whose attention takes as long as a token's linear layers: their multiplications, those of
    attention counted `ATTENTION_COST` times."""
    linear = spec.parameters - spec.vocab_size * spec.hidden_size * (1 if spec.tied_embeddings else 2)
    return linear / (2 * spec.num_layers * spec.num_heads * spec.head_dim * ATTENTION_COST)


def _engine(
    config: Config,
    checkpoint: Checkpoint,
    backend: CpuBackend,
    drafting: Drafting,
    plan: MemoryPlan,
    length: int,
    recorder: Recorder,
) -> Engine:
    from headrace.engine.engine import Engine, EngineConfig
    from headrace.kvcache.cache import KVCache
    from headrace.scheduler.config import SchedulerConfig
    from headrace.scheduler.scheduler import Scheduler

    settings, batch = config.section(ModelSettings), config.section(BatchSettings)
    server = config.section(ServerSettings)
    cache = KVCache(plan.kv_blocks, prefix_caching=batch.enable_prefix_caching)
    limits = SchedulerConfig(
        batch.max_num_seqs, batch.max_num_batched_tokens, length, context_unit=_context_unit(checkpoint.spec)
    )
    scheduler = Scheduler(limits, cache, random.Random(settings.seed), drafting.speculation)
    return Engine(scheduler, backend, recorder, EngineConfig(max_queued=server.max_queue))


def _recorder(config: Config, name: str, length: int) -> Recorder:
    from headrace.metrics import Recorder

    return Recorder((config.section(ServerSettings).served_model_name or (name,))[0], length)
