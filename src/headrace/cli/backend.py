"""From settings to how the backend holds a model: the same for one that is loaded, measured, or drafts for another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.cli.machine import processors
from headrace.config import BatchSettings, Config, MachineSettings, ModelSettings

if TYPE_CHECKING:
    from headrace.backends.cpu.backend import Options


def backend_options(config: Config, length: int) -> Options:
    """For a context of ``length`` tokens."""
    from headrace.backends.cpu.backend import available_processors

    settings, batch = config.section(ModelSettings), config.section(BatchSettings)
    machine = config.section(MachineSettings)
    return {
        "dtype": "bfloat16" if settings.dtype == "auto" else settings.dtype,
        "max_model_len": length,
        "max_batch_tokens": batch.max_num_batched_tokens,
        "threads": machine.threads or processors(available_processors()),
        "isa": machine.isa,
        "quantize": settings.quantize,
        "activations": settings.activations,
        "kv_dtype": batch.kv_cache_dtype,
    }
