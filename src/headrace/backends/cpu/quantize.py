"""Float weights to fewer bits, natively: what ``--quantize`` does at load and `headrace quantize` does to a file.

``int8`` is Q8_0: 32 weights share a float16 scale, 8.5 bits a weight. ``int4`` is Q4_1 (a scale and a minimum, 5 bits a
weight) chosen for the least squared error of each block; the embedding and the head, whose errors go straight into the
logits, take Q8_0. Vectors (norms, biases) stay as they are.
"""

from __future__ import annotations

import ctypes
import functools
import math
from array import array
from collections.abc import Callable, Mapping

from msgspec import Struct

from headrace.backends.cpu import abi
from headrace.errors import ModelFileError
from headrace.weights.spec import BLOCK_LAYOUT, DType, Tensor

ROUND, FIT = 0, 1
"""``HR_ROUND``, ``HR_FIT``: scales from the extreme values, or by least squared error."""

FLOATS = (DType.F32, DType.F16, DType.BF16)
OUTER = ("embedding", "lm_head")
_CODES = {dtype: code for code, dtype in enumerate(DType)}


class Scheme(Struct, frozen=True):
    """How a model's matrices are stored: ``inner`` those of the layers, ``outer`` the embedding and the head."""

    inner: DType
    outer: DType
    method: int = ROUND


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme(DType.Q8_0, DType.Q8_0),
    "int4": Scheme(DType.Q4_1, DType.Q8_0, FIT),
    "q8_0": Scheme(DType.Q8_0, DType.Q8_0),
    "q4_0": Scheme(DType.Q4_0, DType.Q8_0),
    "q4_1": Scheme(DType.Q4_1, DType.Q8_0),
}
"""The two of ``--quantize``; and llama.cpp's types, rounded as its converter rounds."""


def storage_type(name: str, tensor: Tensor, scheme: Scheme) -> DType:
    """What the scheme stores a tensor as: as it is, for vectors, quantised tensors and rows that no block divides."""
    target = scheme.outer if name in OUTER else scheme.inner
    whole = len(tensor.shape) == 2 and tensor.shape[1] % BLOCK_LAYOUT[target][0] == 0
    return target if whole and tensor.dtype in FLOATS else tensor.dtype


def quantized(name: str, tensor: Tensor, scheme: Scheme) -> Tensor:
    """The tensor under the scheme; the same one where `storage_type` leaves its type as it is.

    ``name`` is canonical (`headrace.weights.spec`).

    Raises:
        ModelFileError: a value is not finite, or too large for a float16 scale.
    """
    target = storage_type(name, tensor, scheme)
    if target is tensor.dtype:
        return tensor
    elements, size = BLOCK_LAYOUT[target]
    count = tensor.shape[0] * tensor.shape[1]
    out = bytearray(count // elements * size)
    into = (ctypes.c_char * len(out)).from_buffer(out)
    with abi.address_of(tensor.data) as address:
        fine = _native()(_CODES[tensor.dtype], address, _CODES[target], scheme.method, ctypes.addressof(into), count)
    if not fine:
        raise ModelFileError(f"{name}: cannot be quantised: a value is not finite or too large for {target}")
    return Tensor(target, tensor.shape, memoryview(out).toreadonly())


def floats(tensor: Tensor) -> array[float]:
    """The tensor's values as float32, whatever it is stored as."""
    out = array("f", bytes(4 * math.prod(tensor.shape)))
    native = abi.open_library().hr_dequantize
    native.restype = ctypes.c_bool
    native.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)
    with abi.address_of(tensor.data) as address:
        if not native(_CODES[tensor.dtype], address, out.buffer_info()[0], len(out)):
            raise ModelFileError(f"{tensor.dtype}: {len(out)} values are not a whole number of blocks")
    return out


@functools.cache
def _native() -> Callable[..., bool]:
    """``hr_requantize``: (from, source, to, method, destination, elements); it releases the GIL."""
    function = abi.open_library().hr_requantize
    function.restype = ctypes.c_bool
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_long)
    return function
