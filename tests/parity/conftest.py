"""The backends that parity is asked of."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.backends import Backend
from headrace.weights.spec import Checkpoint

Load = Callable[[Checkpoint, int], Backend]
"""(checkpoint, max_model_len) → a backend in float32 with no KV allocated."""

MAX_BATCH_TOKENS = 256


def load_reference(checkpoint: Checkpoint, max_model_len: int) -> Backend:
    from headrace.backends.reference.backend import load

    return load(checkpoint, dtype="float32", max_model_len=max_model_len, max_batch_tokens=MAX_BATCH_TOKENS)


def backends() -> dict[str, Load]:
    """The reference, and the native library on every instruction set of this machine."""
    return {"reference": load_reference}


BACKENDS = backends()
