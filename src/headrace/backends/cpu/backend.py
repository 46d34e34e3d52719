"""`CpuBackend`: a model on the native library, behind the contract of `headrace.backends.Backend`."""

from __future__ import annotations

import contextlib
import ctypes
import os
from array import array
from collections.abc import Callable, Sequence
from typing import Required, TypedDict, Unpack

from headrace.backends.cpu import abi
from headrace.backends.cpu.batch import Batch
from headrace.backends.cpu.quantize import SCHEMES, storage_type
from headrace.errors import ConfigError, EngineError, HeadraceError, MemoryPlanError, ModelFileError
from headrace.types import MemoryItem, Plan, StepResult
from headrace.weights.spec import Activation, Checkpoint, DType, ModelSpec, Tensor

_DTYPES = {"float32": abi.FLOAT32, "bfloat16": abi.BFLOAT16}
_KV_DTYPES = {"auto": abi.KV_SAME, "int8": abi.KV_INT8}
_STORAGE = {dtype: code for code, dtype in enumerate(DType)}
_QUANTIZE = ("int8", "int4")
ACTIVATIONS = {"float": abi.FLOAT, "int8": abi.INT8, "int16": abi.INT16}
"""What quantised weights are multiplied by."""
_PROGRESS_STEPS = 50


class CpuBackend:
    """One loaded model. `load` makes it; `run` may be called from one thread at a time."""

    def __init__(self, native: int, spec: ModelSpec, activations: str) -> None:
        self._native: int | None = native
        self.activations = activations
        """What quantised weights are multiplied by."""
        self._vocab_size = spec.vocab_size
        self._library = abi.open_library()
        self._error = abi.ErrorText()
        self._batch = Batch(spec.vocab_size, spec.hidden_size)
        self._step_arguments = (ctypes.addressof(self._batch.batch), ctypes.addressof(self._batch.result))

    @property
    def vocab_size(self) -> int:
        """Logits per position."""
        return self._vocab_size

    @property
    def kv_block_bytes(self) -> int:
        """Bytes that one KV block takes over all layers (head dimensions padded to multiples of 32)."""
        return self._memory()[3]

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        name: bytes = self._library.hr_isa(self._handle())
        return name.decode()

    def memory(self) -> tuple[MemoryItem, ...]:
        """Packed weights, activations for the largest step, and the KV pool's address space."""
        weights, activations, kv, _ = self._memory()
        return MemoryItem("weights", weights), MemoryItem("activations", activations), MemoryItem("kv", kv)

    def allocate_kv(self, num_blocks: int) -> None:
        """Reserve address space for ``num_blocks`` KV blocks, once; memory is taken as blocks are first written.

        Raises:
            MemoryPlanError: the number is out of range, the pool exists, or the address space is not there.
        """
        if self._library.hr_allocate_kv(self._handle(), num_blocks, *self._error.arguments):
            raise MemoryPlanError(f"cannot allocate {num_blocks} KV blocks: {self._error}")

    def run(self, plan: Plan) -> StepResult:
        """Compute one step; see `headrace.backends.Backend.run`.

        Raises:
            EngineError: an id or position of the plan is out of range, or memory ran out; nothing was computed.
        """
        if not plan.rows:
            return StepResult(())
        try:
            self._batch.fill(plan)
        except (OverflowError, TypeError) as error:
            raise EngineError(f"the plan holds a number that is no 32-bit integer: {error}") from error
        if self._library.hr_step(self._handle(), *self._step_arguments, *self._error.arguments):
            raise EngineError(f"the step failed: {self._error}")
        return self._batch.results(plan)

    def close(self) -> None:
        """Give all memory back. Idempotent. The process's threads stay, asleep, for the next model."""
        native, self._native = self._native, None
        if native is not None:
            self._library.hr_destroy(native)

    def __del__(self) -> None:
        self.close()

    def _handle(self) -> int:
        if self._native is None:
            raise EngineError("the backend is closed")
        return self._native

    def _memory(self) -> tuple[int, int, int, int]:
        sizes = (ctypes.c_int64 * 4)()
        self._library.hr_memory(self._handle(), ctypes.addressof(sizes))
        return sizes[0], sizes[1], sizes[2], sizes[3]


class Options(TypedDict, total=False):
    """How a model is held and computed; `load` says what each means."""

    dtype: Required[str]
    max_model_len: Required[int]
    max_batch_tokens: Required[int]
    threads: int | None
    isa: str | None
    quantize: str | None
    activations: str
    kv_dtype: str


def load(
    checkpoint: Checkpoint, *, progress: Callable[[float], None] | None = None, **options: Unpack[Options]
) -> CpuBackend:
    """Pack a checkpoint's weights into memory of their own; its files are not needed afterwards.

    ``dtype`` ("bfloat16" or "float32") is what weights are multiplied in and KV is held in; sums and the residual
    stream are float32 in both. ``kv_dtype`` "int8" holds keys and values in 8 bits and a scale for each token's head
    instead of in ``dtype`` ("auto"). Weights that the file has quantised stay as they are until just before they are
    multiplied; ``quantize`` ("int8" or "int4", see `headrace.backends.cpu.quantize`) quantises those that it has as
    floats. ``activations`` "int16" or "int8" puts quantised weights on 8-bit grids, one for each output, and
    multiplies them by integers (docs/decisions/0012). ``threads`` None
    takes every processor that this process may run on. ``isa`` None takes the best of `abi.available_isas`.
    ``progress`` is told the share of bytes done, up to 1.

    Raises:
        ConfigError: an unknown dtype or an instruction set that this machine lacks.
        ModelFileError: a tensor is missing, of a wrong shape, or holds a value that is not finite.
        MemoryPlanError: the memory is not there.
    """
    backend = _create(checkpoint, **options)
    try:
        _set_tensors(backend._handle(), checkpoint, progress)
    except BaseException:
        backend.close()
        raise
    return backend


def measure(checkpoint: Checkpoint, **options: Unpack[Options]) -> tuple[int, int]:
    """What `load` would take, without loading: bytes of weights and activations, and of one KV block.

    Raises:
        ConfigError, MemoryPlanError: as `load`.
    """
    backend = _create(checkpoint, **options)
    try:
        return sum(item.bytes for item in backend.memory()), backend.kv_block_bytes
    finally:
        backend.close()


def _create(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    max_model_len: int,
    max_batch_tokens: int,
    threads: int | None = None,
    isa: str | None = None,
    quantize: str | None = None,
    activations: str = "float",
    kv_dtype: str = "auto",
) -> CpuBackend:
    """A model without weights: address space, of which nothing has been touched."""
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    available = abi.available_isas()
    if isa is not None and isa not in available:
        raise ConfigError(f"isa {isa!r} is not one of those that this machine runs: {', '.join(available)}")
    if kv_dtype not in _KV_DTYPES:
        raise ConfigError(f"KV cache dtype {kv_dtype!r} is not one of {', '.join(_KV_DTYPES)}")
    if activations not in ACTIVATIONS:
        raise ConfigError(f"activations {activations!r} is not one of {', '.join(ACTIVATIONS)}")
    if quantize is not None and quantize not in _QUANTIZE:
        raise ConfigError(f"quantize {quantize!r} is not one of {', '.join(_QUANTIZE)}")
    error = abi.ErrorText()
    native: int | None = abi.open_library().hr_create(
        ctypes.byref(_spec_struct(checkpoint.spec, _kept_storage(checkpoint, quantize))),
        _DTYPES[dtype],
        _KV_DTYPES[kv_dtype],
        ACTIVATIONS[activations],
        max_batch_tokens,
        max_model_len,
        threads if threads is not None else available_processors(),
        isa.encode() if isa else None,
        *error.arguments,
    )
    if native is None:
        kind = MemoryPlanError if str(error) == "out of memory" else HeadraceError
        raise kind(f"cannot hold the model {checkpoint.name}: {error}")
    return CpuBackend(native, checkpoint.spec, activations)


def available_processors() -> int:
    """How many processors the scheduler lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _kept_storage(checkpoint: Checkpoint, quantize: str | None) -> bytes:
    """``hr_spec.storage``: how each tensor is kept in memory. Senseless names are refused when they are set."""
    kept = bytearray((checkpoint.spec.num_layers + 1) * len(abi.ROLES))
    for name, tensor in checkpoint.tensors.items():
        place = _place(name)
        if place is None or place[0] >= checkpoint.spec.num_layers:
            continue
        dtype = storage_type(name, tensor, SCHEMES[quantize]) if quantize else tensor.dtype
        row = place[0] + 1 if name.startswith("layers.") else 0
        kept[row * len(abi.ROLES) + place[1]] = _STORAGE[dtype]
    return bytes(kept)


def _place(name: str) -> tuple[int, int] | None:
    """A tensor's (layer, role); layer 0 for the model's own. None for a name that no tensor has."""
    prefix, _, role = name.rpartition(".")
    layer = prefix.removeprefix("layers.")
    if role not in abi.ROLES or not (prefix == "" or (prefix.startswith("layers.") and layer.isdecimal())):
        return None
    return int(layer or 0), abi.ROLES.index(role)


def _spec_struct(spec: ModelSpec, storage: bytes) -> abi.SpecStruct:
    frequencies = [array("f", rope.inv_freq) for rope in spec.ropes]
    ropes = (abi.RopeStruct * len(spec.ropes))(
        *[
            abi.RopeStruct(values.buffer_info()[0], len(values), rope.interleaved, rope.magnitude)
            for values, rope in zip(frequencies, spec.ropes, strict=True)
        ]
    )
    layer_rope = array("i", spec.layer_rope)
    layer_window = array("i", [window or 0 for window in spec.layer_window])
    flags = (
        abi.POST_NORMS * spec.post_norms
        | abi.QK_NORM * spec.qk_norm
        | abi.QKV_BIAS * spec.qkv_bias
        | abi.O_BIAS * spec.o_bias
        | abi.GELU_TANH * (spec.activation is Activation.GELU_TANH)
        | abi.TIED * spec.tied_embeddings
    )
    struct = abi.SpecStruct(
        *(spec.vocab_size, spec.hidden_size, spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim),
        *(spec.ffn_size, len(spec.ropes), flags),
        *(spec.norm_eps, spec.norm_offset, spec.attention_scale, spec.embedding_scale),
        *(spec.attention_softcap or 0.0, spec.logit_softcap or 0.0),
        *(layer_rope.buffer_info()[0], layer_window.buffer_info()[0]),
        ropes,
        storage,
    )
    struct.kept = (frequencies, layer_rope, layer_window)  # the structure holds their addresses
    return struct


def _set_tensors(native: int, checkpoint: Checkpoint, progress: Callable[[float], None] | None) -> None:
    """In one call, beside which the interpreter is free; in several if somebody wants to see progress."""
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values()) or 1
    batch: list[tuple[str, Tensor]] = []
    done, waiting = 0, 0
    for name, tensor in checkpoint.tensors.items():
        batch.append((name, tensor))
        waiting += tensor.nbytes
        if progress and waiting >= total / _PROGRESS_STEPS:
            _set_batch(native, batch)
            done, waiting, batch = done + waiting, 0, []
            progress(done / total)
    _set_batch(native, batch)
    if progress:
        progress(1.0)
    error = abi.ErrorText()
    if abi.open_library().hr_finish(native, *error.arguments):
        raise ModelFileError(f"{checkpoint.path}: {error}")


def _set_batch(native: int, tensors: Sequence[tuple[str, Tensor]]) -> None:
    error = abi.ErrorText()
    with contextlib.ExitStack() as addresses:
        structs = (abi.TensorStruct * len(tensors))()
        for struct, (name, tensor) in zip(structs, tensors, strict=True):
            place = _place(name)
            if place is None:
                raise ModelFileError(f"{name} is not a tensor of the specification")
            struct.layer, struct.role = place
            struct.storage = _STORAGE[tensor.dtype]
            struct.data = addresses.enter_context(abi.address_of(tensor.data))
            struct.bytes = tensor.data.nbytes
            struct.rows, struct.columns = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
        failed = abi.open_library().hr_set_tensors(native, ctypes.addressof(structs), len(structs), *error.arguments)
    if failed:
        raise ModelFileError(str(error))
