"""The backends that parity is asked of, and the default model."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch

from headrace.backends import Backend
from headrace.weights.spec import Checkpoint
from tests.backends.native_sampler import LIBRARY

Load = Callable[[Checkpoint, int], Backend]
"""(checkpoint, max_model_len) → a backend in float32 with no KV allocated."""

MAX_BATCH_TOKENS = 1024

torch.set_num_threads(1)  # models this small gain nothing from a second one, and on a busy machine it waits in a spin


def load_reference(checkpoint: Checkpoint, max_model_len: int) -> Backend:
    from headrace.backends.reference.backend import load

    return load(checkpoint, dtype="float32", max_model_len=max_model_len, max_batch_tokens=MAX_BATCH_TOKENS)


def load_native(checkpoint: Checkpoint, max_model_len: int, dtype: str = "float32", isa: str | None = None) -> Backend:
    from headrace.backends.cpu.backend import load

    return load(
        checkpoint,
        dtype=dtype,
        max_model_len=max_model_len,
        max_batch_tokens=MAX_BATCH_TOKENS,
        threads=2,
        isa=isa,
    )


def backends() -> dict[str, Load]:
    """The reference, and the native library on every instruction set of this machine."""
    found: dict[str, Load] = {"reference": load_reference}
    library = ctypes.CDLL(str(LIBRARY))
    library.hr_isas.restype = ctypes.c_char_p
    for isa in library.hr_isas().decode().split():
        found[f"cpu-{isa}"] = functools.partial(load_native, isa=isa)
    return found


BACKENDS = backends() if LIBRARY.exists() else {"reference": load_reference}
