"""The native library's C ABI (native/headrace.h) as ctypes declarations: types, functions and error texts."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.errors import HeadraceError

ERROR_BYTES = 512

_I32, _I64, _F32 = ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_ADDRESS = ctypes.c_void_p


class RopeStruct(ctypes.Structure):
    """``hr_rope``."""

    _fields_ = (("inv_freq", _ADDRESS), ("pairs", _I32), ("interleaved", _I32), ("magnitude", _F32))


class SpecStruct(ctypes.Structure):
    """``hr_spec``."""

    _fields_ = (
        *((name, _I32) for name in ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "num_ropes")),
        ("flags", _I32),
        *((name, _F32) for name in ("norm_eps", "norm_offset", "attention_scale", "embedding_scale")),
        *((name, _F32) for name in ("attention_softcap", "logit_softcap")),
        ("layer_rope", _ADDRESS),
        ("layer_window", _ADDRESS),
        ("ropes", ctypes.POINTER(RopeStruct)),
        ("storage", ctypes.c_char_p),
    )


class TensorStruct(ctypes.Structure):
    """``hr_tensor``."""

    _fields_ = (
        *((name, _I32) for name in ("role", "layer", "storage")),
        ("data", _ADDRESS),
        *((name, _I64) for name in ("bytes", "rows", "columns")),
    )


POST_NORMS, QK_NORM, QKV_BIAS, O_BIAS, GELU_TANH, TIED = (1 << bit for bit in range(6))
FLOAT32, BFLOAT16 = 0, 1
FLOAT, INT8, INT16 = 0, 1, 2
KV_SAME, KV_INT8 = 0, 1

ROLES = (
    *("embedding", "lm_head", "norm", "attention_norm", "q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias"),
    *("q_norm", "k_norm", "attention_post_norm", "ffn_norm", "gate", "up", "down", "ffn_post_norm"),
)
"""Tensor names without their layer; a role is an index."""

WANT_NOTHING, WANT_GREEDY, WANT_EMBEDDING = -1, -2, -3


class BatchStruct(ctypes.Structure):
    """``hr_batch``."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("rows", "tokens", "blocks", "copies", "targets", "samplings")),
        *((name, _I32) for name in ("num_rows", "num_tokens", "num_blocks", "num_copies")),
        *((name, _I32) for name in ("num_targets", "num_samplings")),
        ("num_choices", _ADDRESS),
    )


class ResultStruct(ctypes.Structure):
    """``hr_result``."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("row_token", "row_status", "token", "status", "rank", "top_count")),
        *((name, _ADDRESS) for name in ("logprob", "top_ids", "top_logprobs", "embeddings")),
    )


_ERROR = (ctypes.c_char_p, _I32)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "hr_create": (_ADDRESS, (ctypes.POINTER(SpecStruct), *(_I32,) * 6, ctypes.c_char_p, *_ERROR)),
    "hr_destroy": (None, (_ADDRESS,)),
    "hr_set_tensors": (_I32, (_ADDRESS, _ADDRESS, _I32, *_ERROR)),
    "hr_finish": (_I32, (_ADDRESS, *_ERROR)),
    "hr_allocate_kv": (_I32, (_ADDRESS, _I64, *_ERROR)),
    "hr_step": (_I32, (_ADDRESS, _ADDRESS, _ADDRESS, *_ERROR)),
    "hr_memory": (None, (_ADDRESS, _ADDRESS)),
    "hr_isa": (ctypes.c_char_p, (_ADDRESS,)),
    "hr_isas": (ctypes.c_char_p, ()),
    "hr_sampling_error": (ctypes.c_char_p, (_I32,)),
}


@functools.cache
def open_library() -> ctypes.CDLL:
    """The library beside this file, loaded once.

    Raises:
        HeadraceError: it is missing or does not load: the installation is incomplete.
    """
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = Path(__file__).with_name(f"libheadrace.{suffix}")
    if not path.exists():
        raise HeadraceError(
            f"{path} is missing: reinstall headrace, or in a checkout run "
            "`cmake -S native -B build/dev && cmake --build build/dev`"
        )
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise HeadraceError(f"{path} does not load ({error}): reinstall headrace") from error
    return loaded


class ErrorText:
    """A buffer that the library writes its message into; one for each thread of calls."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(ERROR_BYTES)

    @property
    def arguments(self) -> tuple[ctypes.Array[ctypes.c_char], int]:
        """The last two arguments of a call."""
        return self._buffer, ERROR_BYTES

    def __str__(self) -> str:
        return self._buffer.value.decode("utf-8", "replace")


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run, best first; the first is the default."""
    names: bytes = open_library().hr_isas()
    return tuple(names.decode().split())


ALL_BANNED = 2
"""``HR_SAMPLE_ALL_BANNED``: the status of a row whose own settings leave no token to choose."""


@functools.cache
def sampling_error(status: int) -> str:
    """What a row's status other than 0 means."""
    text: bytes = open_library().hr_sampling_error(status)
    return text.decode()


class _BufferView(ctypes.Structure):
    """``Py_buffer`` (stable ABI since Python 3.11)."""

    _fields_ = (
        ("buf", _ADDRESS),
        ("obj", _ADDRESS),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        *((name, _ADDRESS) for name in ("format", "shape", "strides", "suboffsets", "internal")),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.c_void_p,)
_release_buffer.restype = None


@contextlib.contextmanager
def address_of(data: memoryview) -> Iterator[int]:
    """The address of a contiguous view's first byte, good inside the ``with``; nothing is copied.

    ctypes itself gives addresses of writable memory only; files are mapped read-only.

    Raises:
        BufferError: the view is not contiguous.
    """
    view = _BufferView()
    _get_buffer(data, ctypes.byref(view), 0)
    try:
        yield view.buf or 0
    finally:
        _release_buffer(ctypes.byref(view))
