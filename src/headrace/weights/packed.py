"""AWQ and GPTQ checkpoints: ``quantization_config``, and packed tensors as matrices in GGUF's block formats.

A quantised matrix is stored as ``X.qweight``, ``X.qzeros`` and ``X.scales`` (GPTQ: ``X.g_idx`` too) in place of
``X.weight``; what was left alone (embedding, head, norms) is stored as ever. The layouts are those of AutoAWQ's gemm
version and of AutoGPTQ / GPTQModel; `headrace.weights.repack` describes them and what becomes of the numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.weights import repack
from headrace.weights.files import Fields
from headrace.weights.safetensors import Integers, SafetensorsFile
from headrace.weights.spec import BLOCK_LAYOUT, DType, ModelSpec, Tensor

MAX_GROUP = 1 << 24
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


class Packing(Struct, frozen=True):
    """How a checkpoint's matrices are packed. ``group`` inputs share a scale and a zero; None: all of them.

    ``zero_offset`` is what has to be added to a stored zero: GPTQ's first format stores one less than it means.
    """

    method: str
    bits: int
    group: int | None
    zero_offset: int = 0


def packing_from(config: Mapping[str, Any], where: str) -> Packing | None:
    """What config.json's ``quantization_config`` says; None if there is none.

    Raises:
        ModelFileError: a field is missing or out of range.
        UnsupportedModel: another method, or a variant that is not served.
    """
    if not config.get("quantization_config"):
        return None
    fields = Fields(where, config).section("quantization_config")
    if fields is None:
        return None
    method = fields.string("quant_method", default="unnamed").lower()
    if method not in ("awq", "gptq"):
        raise UnsupportedModel(
            f"{fields.where}: quant_method {method[:40]!r} is not served; served: awq, gptq, and GGUF files"
        )
    group = None if fields.get("group_size") == -1 else fields.integer("group_size", MAX_GROUP)
    if group is not None and group % repack.BLOCK:
        raise UnsupportedModel(f"{fields.where}: group_size {group} is not served; multiples of {repack.BLOCK} are")
    bits = fields.integer("bits", 64)
    if method == "awq":
        _require(fields, "bits", bits, (4,))
        _require(fields, "version", fields.string("version", default="gemm").lower(), ("gemm",))
        _require(fields, "zero_point", fields.flag("zero_point", default=True), (True,))
        return Packing(method, bits, group)
    _require(fields, "bits", bits, (4, 8))
    stored = fields.string("checkpoint_format", default="gptq").lower()
    _require(fields, "checkpoint_format", stored, ("gptq", "gptq_v2"))
    _require(fields, "pack_dtype", fields.string("pack_dtype", default="int32"), ("int32",))
    if fields.get("dynamic"):
        raise UnsupportedModel(f"{fields.where}: dynamic: different settings for single layers are not served")
    return Packing(method, bits, group, 0 if stored == "gptq_v2" else 1)


def _require(fields: Fields, name: str, value: object, served: tuple[object, ...]) -> None:
    if value not in served:
        raise UnsupportedModel(
            f"{fields.where}: {name} {str(value)[:40]!r} is not served; served: {', '.join(map(str, served))}"
        )


def unpacked(file: SafetensorsFile, packing: Packing, spec: ModelSpec, where: str) -> SafetensorsFile:
    """The same weights with every packed matrix as one tensor ``X.weight`` [out, in], computed when it is read.

    Raises:
        ModelFileError: a part is missing, or shapes contradict each other.
        UnsupportedModel: inputs grouped out of order (GPTQ's act-order), or a type without a block format.
    """
    stems = [name.removesuffix(".qweight") for name in file.integers if name.endswith(".qweight")]
    if not stems:
        raise ModelFileError(f"{where}: the configuration says {packing.method}, but no tensor is named *.qweight")
    parts = {f"{stem}.{part}" for stem in stems for part in _PARTS}
    tensors = {name: tensor for name, tensor in file.tensors.items() if name not in parts}
    biased = ("q_proj", "k_proj", "v_proj", "qkv_proj") * spec.qkv_bias + ("o_proj",) * spec.o_bias
    for stem in stems:
        if f"{stem}.weight" in tensors:
            raise ModelFileError(f"{where}: {stem} is stored packed and as {stem}.weight too")
        tensors[f"{stem}.weight"] = _matrix(file, packing, stem, f"{where}: {stem}")
        if not stem.endswith(biased) and _is_zero(tensors.get(f"{stem}.bias")):
            # Older AutoGPTQ writes a bias of zeros for every matrix that has none.
            del tensors[f"{stem}.bias"]
    integers = {name: tensor for name, tensor in file.integers.items() if name not in parts}
    return SafetensorsFile(tensors, {n: t for n, t in file.other.items() if n not in parts}, integers)


def _is_zero(tensor: Tensor | None) -> bool:
    return tensor is not None and not any(bytes(tensor.data))


def _matrix(file: SafetensorsFile, packing: Packing, stem: str, where: str) -> Tensor:
    qweight, qzeros = _integers(file, f"{stem}.qweight", where), _integers(file, f"{stem}.qzeros", where)
    scales = file.tensors.get(f"{stem}.scales")
    if scales is None or len(scales.shape) != 2:
        raise ModelFileError(f"{where}.scales: missing, not a float type, or not a matrix")
    if scales.dtype is not DType.F16:
        raise UnsupportedModel(f"{where}.scales: stored as {scales.dtype}; served: F16")
    in_one = 32 // packing.bits
    groups, outputs = scales.shape
    inputs = qweight.shape[0] * (1 if packing.method == "awq" else in_one)
    group = packing.group or inputs
    if inputs % repack.BLOCK or outputs % in_one or inputs != groups * group:
        raise ModelFileError(
            f"{where}: {inputs} inputs and {outputs} outputs do not go into {groups} groups of {group}, blocks of "
            f"{repack.BLOCK} and {in_one} integers an int32"
        )
    packed = (inputs, outputs // in_one) if packing.method == "awq" else (inputs // in_one, outputs)
    for name, tensor, shape in (("qweight", qweight, packed), ("qzeros", qzeros, (groups, outputs // in_one))):
        if tensor.shape != shape:
            raise ModelFileError(f"{where}.{name}: has shape {list(tensor.shape)}; {list(shape)} is expected")
    _check_order(file.integers.get(f"{stem}.g_idx"), inputs, group, f"{where}.g_idx")
    zeros = _zeros(qzeros, packing)
    dtype = _block_type(zeros, packing, where)
    # The closure keeps views of the file alone.
    return Tensor(
        dtype, (outputs, inputs), lambda: _blocks(dtype, packing, (outputs, inputs), (qweight, qzeros, scales), where)
    )


def _integers(file: SafetensorsFile, name: str, where: str) -> Integers:
    found = file.integers.get(name)
    if found is None or len(found.shape) != 2:
        raise ModelFileError(f"{where}: {name} is missing, not I32, or not a matrix")
    return found


def _check_order(g_idx: Integers | None, inputs: int, group: int, where: str) -> None:
    """Every input must be in the group of its place: only then do neighbours share a scale."""
    if g_idx is None:
        return
    if g_idx.shape != (inputs,):
        raise ModelFileError(f"{where}: has shape {list(g_idx.shape)}; [{inputs}] is expected")
    order = g_idx.data.tobytes()
    if order == array("i", (i // group for i in range(inputs))).tobytes():
        return
    if not all(0 <= i < inputs // group for i in array("i", order)):
        raise ModelFileError(f"{where}: names a group outside 0..{inputs // group - 1}")
    raise UnsupportedModel(f"{where}: inputs are grouped out of order (desc_act), which is not served")


def _zeros(qzeros: Integers, packing: Packing) -> list[bytes]:
    """The zero of every output, one row a group. Adding the offset wraps, as it did when it was taken off."""
    width = len(qzeros.data) // qzeros.shape[0]
    rows = [qzeros.data[i * width : (i + 1) * width] for i in range(qzeros.shape[0])]
    if packing.bits == 4:
        order = repack.AWQ_ORDER if packing.method == "awq" else repack.GPTQ_ORDER
        found = [repack.nibbles(row, order) for row in rows]
    else:
        found = [bytes(row) for row in rows]
    wrapped = bytes((value + packing.zero_offset) % (1 << packing.bits) for value in range(256))
    return [row.translate(wrapped) for row in found]


def _block_type(zeros: list[bytes], packing: Packing, where: str) -> DType:
    middle = 1 << (packing.bits - 1)
    if all(row.count(middle) == len(row) for row in zeros):
        return DType.Q4_0 if packing.bits == 4 else DType.Q8_0
    if packing.bits == 8:
        raise UnsupportedModel(f"{where}.qzeros: eight bits with zeros other than {middle} (sym: false) are not served")
    return DType.Q4_1


def _blocks(
    dtype: DType,
    packing: Packing,
    shape: tuple[int, int],
    parts: tuple[Integers, Integers, Tensor],
    where: str,
) -> memoryview:
    (outputs, inputs), (qweight, qzeros, scales) = shape, parts
    out = bytearray(outputs * (inputs // repack.BLOCK) * BLOCK_LAYOUT[dtype][1])
    try:
        repack.put_scales(out, dtype, scales.data, _zeros(qzeros, packing), inputs)
    except OverflowError as error:
        raise ModelFileError(f"{where}: scale times zero is beyond float16") from error
    if packing.method == "awq":
        repack.put_awq(out, dtype, qweight.data, inputs)
    elif packing.bits == 4:
        repack.put_gptq4(out, dtype, qweight.data, inputs)
    else:
        repack.put_gptq8(out, qweight.data, inputs)
    return memoryview(out).toreadonly()
