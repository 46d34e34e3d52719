"""`native/sampler.h` through ctypes, in NumPy terms: for tests only."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headrace.backends.cpu
from headrace.types import RowSampling, TokenLogprobs

LIBRARY = Path(headrace.backends.cpu.__path__[0]) / "libheadrace.so"
ERRORS = {1: "not finite", 2: "all banned", 3: "bad id", 4: "bad parameter"}


class NativeError(Exception):
    """The native sampler answered with an error code."""


class _Sampling(ctypes.Structure):
    _fields_ = (
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("repetition_penalty", ctypes.c_double),
        ("presence_penalty", ctypes.c_double),
        ("frequency_penalty", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("position", ctypes.c_uint64),
        ("top_k", ctypes.c_int32),
        ("logprobs", ctypes.c_int32),
        ("history", ctypes.POINTER(ctypes.c_int32)),
        ("history_length", ctypes.c_int32),
        ("prompt_length", ctypes.c_int32),
        ("bias_ids", ctypes.POINTER(ctypes.c_int32)),
        ("bias_values", ctypes.POINTER(ctypes.c_double)),
        ("bias_count", ctypes.c_int32),
        ("allowed_count", ctypes.c_int32),
        ("allowed", ctypes.POINTER(ctypes.c_int32)),
        ("mask", ctypes.c_char_p),
        ("green_seed", ctypes.c_uint64),
        ("green_delta", ctypes.c_double),
        ("green_below", ctypes.c_uint32),
        ("mask_words", ctypes.c_int32),
    )


class _Choice(ctypes.Structure):
    _fields_ = (
        ("top_ids", ctypes.POINTER(ctypes.c_int32)),
        ("top_logprobs", ctypes.POINTER(ctypes.c_float)),
        ("token", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("logprob", ctypes.c_float),
        ("top_count", ctypes.c_int32),
    )


def _structure(sampling: RowSampling) -> _Sampling:
    ids, values, allowed = list(sampling.bias), list(sampling.bias.values()), sampling.allowed
    return _Sampling(
        **{
            name: getattr(sampling, name)
            for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        },
        seed=sampling.seed % 2**64,
        position=sampling.position,
        top_k=sampling.top_k,
        logprobs=-1 if sampling.logprobs is None else sampling.logprobs,
        history=(ctypes.c_int32 * len(sampling.history))(*sampling.history),
        history_length=len(sampling.history),
        prompt_length=sampling.prompt_length,
        bias_ids=(ctypes.c_int32 * len(ids))(*ids),
        bias_values=(ctypes.c_double * len(ids))(*values),
        bias_count=len(ids),
        allowed_count=-1 if allowed is None else len(allowed),
        allowed=None if allowed is None else (ctypes.c_int32 * len(allowed))(*allowed),
        mask=sampling.mask,
        mask_words=len(sampling.mask or b"") // 4,
        green_seed=sampling.green.seed if sampling.green else 0,
        green_delta=sampling.green.delta if sampling.green else 0.0,
        green_below=sampling.green.below if sampling.green else 0,
    )


class NativeSampler:
    """One scratch area and the calls that use it, for one vocabulary size."""

    def __init__(self, library: Path, vocab: int) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.hr_sampler_scratch_bytes.restype = ctypes.c_size_t
        self._vocab = vocab
        size = self._library.hr_sampler_scratch_bytes(vocab)
        self._memory = np.zeros(size + 64 + 8, dtype=np.uint8)
        self._scratch = -self._memory.ctypes.data % 64
        self._guard = self._memory[self._scratch + size :]
        self._guard[:] = 0xA5

    def sample(self, logits: NDArray[np.float32], sampling: RowSampling) -> tuple[int, TokenLogprobs | None]:
        """`hr_sample` on a copy of ``logits``."""
        row = logits.astype(np.float32, copy=True)
        choice = self._choice(sampling.logprobs or 0)
        self._call("hr_sample", self._row(row), ctypes.byref(_structure(sampling)), self._place(), ctypes.byref(choice))
        return choice.token, None if sampling.logprobs is None else self._logprobs(choice)

    def token_logprobs(self, logits: NDArray[np.float32], token: int, count: int) -> TokenLogprobs:
        """`hr_token_logprobs`."""
        choice = self._choice(count)
        self._call("hr_token_logprobs", self._row(logits), token, count, self._place(), ctypes.byref(choice))
        return self._logprobs(choice)

    def kept(self, logits: NDArray[np.float32], sampling: RowSampling) -> set[int]:
        """The ids that `hr_sampling_cut` keeps."""
        logit, last = ctypes.c_float(), ctypes.c_int32()
        where = (self._place(), ctypes.byref(logit), ctypes.byref(last))
        self._call("hr_sampling_cut", self._row(logits), ctypes.byref(_structure(sampling)), *where)
        ids = np.arange(len(logits))
        mask = (logits > logit.value) | ((logits == np.float32(logit.value)) & (ids <= last.value))
        return set(np.flatnonzero(mask).tolist())

    def _place(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._memory.ctypes.data + self._scratch)

    @staticmethod
    def _row(logits: NDArray[np.float32]) -> Any:
        return logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    @staticmethod
    def _choice(count: int) -> _Choice:
        return _Choice((ctypes.c_int32 * count)(), (ctypes.c_float * count)())

    @staticmethod
    def _logprobs(choice: _Choice) -> TokenLogprobs:
        top = tuple((choice.top_ids[i], choice.top_logprobs[i]) for i in range(choice.top_count))
        return TokenLogprobs(choice.token, choice.logprob, choice.rank, top)

    def _call(self, name: str, logits: Any, *arguments: Any) -> None:
        code = getattr(self._library, name)(logits, ctypes.c_int32(self._vocab), *arguments)
        if (self._guard != 0xA5).any():
            raise AssertionError(f"{name} wrote past its scratch")
        if code:
            raise NativeError(ERRORS[code])
