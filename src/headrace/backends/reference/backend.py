"""`headrace.backends.Backend` over the NumPy decoder: slow, and easy to believe."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.backends.reference.decoder import Decoder
from headrace.backends.reference.dequantize import dequantize
from headrace.backends.reference.sampling import NothingToChoose, SamplingError, adjusted, sample, token_logprobs
from headrace.errors import ConfigError, EngineError, MemoryPlanError, ModelFileError
from headrace.types import (
    BLOCK_SIZE,
    Cause,
    MemoryItem,
    Plan,
    PlanRow,
    RowResult,
    RowSampling,
    StepResult,
    TokenLogprobs,
)
from headrace.weights.spec import Checkpoint

Floats = NDArray[np.float32]
PLAIN = RowSampling()


def load(
    checkpoint: Checkpoint, *, dtype: str, max_model_len: int, max_batch_tokens: int, kv_dtype: str = "auto"
) -> ReferenceBackend:
    """Expand every weight to float32. With ``kv_dtype`` "int8" keys and values are rounded as 8 bits round them.

    Raises:
        ConfigError: ``dtype`` is not float32, the only precision here, or ``kv_dtype`` is unknown.
        ModelFileError: a weight is NaN or infinite.
    """
    if dtype != "float32":
        raise ConfigError(f"dtype {dtype!r}: the reference backend computes in float32 only")
    if kv_dtype not in ("auto", "int8"):
        raise ConfigError(f"KV cache dtype {kv_dtype!r} is not one of auto, int8")
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        tensors[name] = dequantize(tensor)
        if not np.isfinite(tensors[name]).all():
            raise ModelFileError(f"{checkpoint.path}: tensor {name!r} holds NaN or infinite values")
    return ReferenceBackend(Decoder(checkpoint.spec, tensors, kv_dtype == "int8"), max_model_len, max_batch_tokens)


class ReferenceBackend:
    """Runs plans one token at a time; a row's result is bit for bit that of the same row alone."""

    def __init__(self, decoder: Decoder, max_model_len: int, max_batch_tokens: int) -> None:
        self._decoder = decoder
        self._max_model_len = max_model_len
        self._max_batch_tokens = max_batch_tokens
        spec = decoder.spec
        self._block_shape = (spec.num_layers, 2, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
        self._kv: Floats = np.empty((0, *self._block_shape), np.float32)

    @property
    def vocab_size(self) -> int:
        """Logits per position."""
        return self._decoder.spec.vocab_size

    @property
    def kv_block_bytes(self) -> int:
        """Bytes that one KV block takes over all layers."""
        return BLOCK_SIZE * self._decoder.spec.kv_bytes_per_token(4)

    def memory(self) -> tuple[MemoryItem, ...]:
        """Weights and KV; activations are one token's."""
        weights = sum(t.nbytes for t in self._decoder.tensors.values())
        return (MemoryItem("weights", weights), MemoryItem("KV cache", self._kv.nbytes))

    def allocate_kv(self, num_blocks: int) -> None:
        """Make room for ``num_blocks`` KV blocks, once.

        Raises:
            MemoryPlanError: there is no such memory.
            EngineError: it was called before.
        """
        if len(self._kv):
            raise EngineError("KV blocks are already allocated")
        try:
            self._kv = np.zeros((num_blocks, *self._block_shape), np.float32)
        except MemoryError as error:
            raise MemoryPlanError(f"{num_blocks} KV blocks of {self.kv_block_bytes} bytes do not fit") from error

    def run(self, plan: Plan) -> StepResult:
        """Apply the plan's copies, then compute its rows in order.

        Raises:
            EngineError: the plan is too large or names a token, position or block that does not exist.
        """
        self._check(plan)
        for source, destination in plan.copies:
            self._kv[destination] = self._kv[source]
        return StepResult([self._run_row(row) for row in plan.rows])

    def close(self) -> None:
        """Let go of the weights and the KV."""
        self._decoder = Decoder(self._decoder.spec, {})
        self._kv = self._kv[:0].copy()

    def _run_row(self, row: PlanRow) -> RowResult:
        error: str | None = None
        targets: list[TokenLogprobs] = []
        chosen: list[RowResult] = []
        samplings = () if row.sampling is None else (*row.earlier, row.sampling)
        first = len(row.tokens) - len(samplings)
        for i, input_token in enumerate(row.tokens):
            hidden = self._decoder.hidden(input_token, row.start + i, row.blocks, self._kv)
            try:
                if i < len(row.targets):
                    z = adjusted(self._decoder.logits(hidden), PLAIN)
                    targets.append(token_logprobs(z, row.targets[i], row.target_logprobs))
            except SamplingError as fault:
                error = error or str(fault)
            if i >= first:
                chosen.append(self._choose(hidden, samplings[i - first]))
        last = chosen.pop() if chosen else RowResult()
        if row.embed and error is None:
            return self._embedding(hidden)
        error = error or last.error
        if error is not None:
            return RowResult(error=error, cause=last.cause, earlier=tuple(chosen))
        return RowResult(last.token, last.logprobs, tuple(targets), earlier=tuple(chosen))

    def _embedding(self, hidden: Floats) -> RowResult:
        state = self._decoder.final(hidden)
        if not np.isfinite(state).all():
            return RowResult(error="NaN or infinite numbers in the hidden state")
        return RowResult(embedding=state.tolist())

    def _choose(self, hidden: Floats, sampling: RowSampling) -> RowResult:
        try:
            return RowResult(*sample(self._decoder.logits(hidden), sampling))
        except SamplingError as fault:
            cause = Cause.REQUEST if isinstance(fault, NothingToChoose) else Cause.SERVER
            return RowResult(error=str(fault), cause=cause)

    def _check(self, plan: Plan) -> None:
        if plan.num_tokens > self._max_batch_tokens:
            raise EngineError(f"a plan of {plan.num_tokens} tokens; the limit is {self._max_batch_tokens}")
        blocks = [block for row in plan.rows for block in row.blocks]
        blocks += [block for pair in plan.copies for block in pair]
        if any(not 0 <= block < len(self._kv) for block in blocks):
            raise EngineError(f"a plan names a KV block outside 0..{len(self._kv) - 1}")
        for row in plan.rows:
            if not 0 <= row.start <= self._max_model_len - len(row.tokens):
                raise EngineError(f"sequence {row.sequence}: positions outside 0..{self._max_model_len - 1}")
            if any(not 0 <= token < self.vocab_size for token in (*row.tokens, *row.targets)):
                raise EngineError(f"sequence {row.sequence}: a token id outside 0..{self.vocab_size - 1}")
