"""Backends turn a `Plan` into token ids. Three implementations, one contract.

``cpu`` is the native library, ``reference`` is slow, obvious NumPy and the oracle of the other; ``cuda`` comes later.
A backend sees plans and weights; it never sees a scheduler, a request or a socket.
"""

from __future__ import annotations

from typing import Protocol

from headrace.types import MemoryItem, Plan, StepResult


class Backend(Protocol):
    """What the engine asks of a model.

    Built by its module's ``load(checkpoint, *, dtype, max_model_len, max_batch_tokens, ...)``; weights are in memory
    from then on. `run` is called from one thread, never concurrently with itself; it releases the GIL meanwhile.

    The promise of every backend, in every precision: a row's result depends on that row's own tokens, KV and
    sampling alone, bit for bit. Not on the other rows, not on where a prefill was cut into chunks, not on which
    physical blocks hold its KV.
    """

    @property
    def vocab_size(self) -> int:
        """Logits per position: the width that token ids in requests are checked against."""
        ...

    @property
    def kv_block_bytes(self) -> int:
        """Bytes that one KV block takes over all layers."""
        ...

    def memory(self) -> tuple[MemoryItem, ...]:
        """What is allocated now, itemised: weights, activations and scratch, KV."""
        ...

    def allocate_kv(self, num_blocks: int) -> None:
        """Make room for ``num_blocks`` KV blocks, once. Physical memory is taken only as blocks are first written.

        Raises:
            MemoryPlanError: the address space or memory is not there.
        """
        ...

    def run(self, plan: Plan) -> StepResult:
        """Apply the plan's copies, compute its rows, choose the tokens that it asks for.

        A fault of one row is reported in that row's result.

        Raises:
            EngineError: the step as a whole failed; no row has a result.
        """
        ...

    def close(self) -> None:
        """Give all memory and threads back. Idempotent."""
        ...
