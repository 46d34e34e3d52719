"""Known integers packed as AWQ and GPTQ checkpoints pack them, one integer at a time: slow, and easy to believe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.weights.files import llama_arrays

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Quantised:
    """A matrix as integers q [in, out], zeros [groups, out] and scales [groups, out]: scale * (q - zero)."""

    q: Ints
    zeros: Ints
    scales: NDArray[np.float16]

    def values(self) -> Floats:
        """[out, in]"""
        group = len(self.q) // len(self.scales)
        scales = np.repeat(self.scales.astype(np.float32), group, axis=0)
        zeros = np.repeat(self.zeros, group, axis=0)
        return np.ascontiguousarray((scales * (self.q - zeros).astype(np.float32)).T)


def random(rng: np.random.Generator, inputs: int, outputs: int, bits: int, group: int, symmetric: bool) -> Quantised:
    """The group of -1 is all inputs."""
    groups = 1 if group == -1 else inputs // group
    top = 1 << bits
    zeros = np.full((groups, outputs), top // 2) if symmetric else rng.integers(0, top, (groups, outputs))
    scales = rng.uniform(0.2, 1, (groups, outputs)) / (top * np.sqrt(inputs / 12))
    return Quantised(rng.integers(0, top, (inputs, outputs)), zeros, scales.astype(np.float16))


def packed(values: Ints, bits: int, axis: int, order: tuple[int, ...] | None = None) -> NDArray[np.int32]:
    """``32 / bits`` neighbours along the axis in each int32; ``order[i]`` is which neighbour is the i-th lowest."""
    count = 32 // bits
    moved = np.moveaxis(values, axis, -1)
    moved = moved.reshape(*moved.shape[:-1], -1, count)
    result = np.zeros(moved.shape[:-1], np.uint64)
    for i, neighbour in enumerate(order or range(count)):
        result |= (moved[..., neighbour] & ((1 << bits) - 1)).astype(np.uint64) << np.uint64(bits * i)
    return np.ascontiguousarray(np.moveaxis(result.astype(np.uint32).view(np.int32), -1, axis))


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq(matrix: Quantised) -> dict[str, Any]:
    """The tensors of one matrix in AutoAWQ's gemm layout."""
    return {
        "qweight": packed(matrix.q, 4, 1, AWQ_ORDER),
        "qzeros": packed(matrix.zeros, 4, 1, AWQ_ORDER),
        "scales": matrix.scales,
    }


def gptq(matrix: Quantised, bits: int, version: int = 1) -> dict[str, Any]:
    """The tensors of one matrix in AutoGPTQ's layout; version 1 stores one less than the zero, wrapping."""
    groups = len(matrix.scales)
    return {
        "qweight": packed(matrix.q, bits, 0),
        "qzeros": packed(matrix.zeros - (1 if version == 1 else 0), bits, 1),
        "scales": matrix.scales,
        "g_idx": (np.arange(len(matrix.q)) // (len(matrix.q) // groups)).astype(np.int32),
    }


AWQ_CONFIG: dict[str, Any] = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": None,
}  # fmt: skip
GPTQ_CONFIG: dict[str, Any] = {
    "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "damp_percent": 0.1,
    "true_sequential": True, "checkpoint_format": "gptq", "pack_dtype": "int32", "dynamic": None,
}  # fmt: skip


def model(config: dict[str, Any], seed: int = 0, symmetric: bool = True) -> tuple[dict[str, Any], dict[str, Floats]]:
    """`files.llama_arrays` with its layers' matrices packed as the configuration says, and with those expanded."""
    rng = np.random.default_rng(seed)
    stored: dict[str, Any] = {}
    expanded: dict[str, Floats] = {}
    for name, array in llama_arrays(seed).items():
        if not name.endswith("_proj.weight"):
            stored[name] = expanded[name] = array.astype(np.float16).astype(np.float32)
            continue
        outputs, inputs = array.shape
        matrix = random(rng, inputs, outputs, config["bits"], config["group_size"], symmetric)
        version = 2 if config.get("checkpoint_format") == "gptq_v2" else 1
        parts = awq(matrix) if config["quant_method"] == "awq" else gptq(matrix, config["bits"], version)
        stored |= {name.removesuffix("weight") + part: tensor for part, tensor in parts.items()}
        expanded[name] = matrix.values()
    return stored, expanded
