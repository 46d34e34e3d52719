"""AWQ and GPTQ checkpoints: known integers, packed, must come back as the numbers they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.backends.reference.backend import load
from headrace.backends.reference.dequantize import dequantize
from headrace.errors import ModelError, ModelFileError, UnsupportedModel
from headrace.types import Plan, PlanRow
from headrace.weights import open_checkpoint
from headrace.weights.spec import Checkpoint, DType
from tests.weights.files import CONFIG, write_dir
from tests.weights.packing import AWQ_CONFIG, GPTQ_CONFIG, model

NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
NAMES |= {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")}
VARIANTS: list[tuple[str, dict[str, Any], bool, DType]] = [
    ("awq", AWQ_CONFIG, False, DType.Q4_1),
    ("awq-symmetric", AWQ_CONFIG, True, DType.Q4_0),
    ("awq-whole", {**AWQ_CONFIG, "group_size": -1, "version": "GEMM"}, False, DType.Q4_1),
    ("gptq", GPTQ_CONFIG, True, DType.Q4_0),
    ("gptq-asymmetric", {**GPTQ_CONFIG, "sym": False}, False, DType.Q4_1),
    ("gptq-v2", {**GPTQ_CONFIG, "sym": False, "checkpoint_format": "gptq_v2"}, False, DType.Q4_1),
    ("gptq-whole", {**GPTQ_CONFIG, "group_size": -1}, True, DType.Q4_0),
    ("gptq8", {**GPTQ_CONFIG, "bits": 8}, True, DType.Q8_0),
    ("gptq8-v2", {**GPTQ_CONFIG, "bits": 8, "checkpoint_format": "gptq_v2"}, True, DType.Q8_0),
]


def opened(folder: Path, config: dict[str, Any], arrays: dict[str, Any]) -> Checkpoint:
    return open_checkpoint(write_dir(folder, {**CONFIG, "quantization_config": config}, arrays))


@pytest.mark.parametrize(("config", "symmetric", "dtype"), [v[1:] for v in VARIANTS], ids=[v[0] for v in VARIANTS])
def test_values_come_back(tmp_path: Path, config: dict[str, Any], symmetric: bool, dtype: DType) -> None:
    stored, expanded = model(config, symmetric=symmetric)
    checkpoint = opened(tmp_path, config, stored)
    for layer in range(2):
        for part, theirs in NAMES.items():
            tensor = checkpoint.tensors[f"layers.{layer}.{part}"]
            expected = expanded[f"model.layers.{layer}.{theirs}.weight"]
            assert (tensor.dtype, tensor.shape, tensor.nbytes) == (dtype, expected.shape, len(tensor.data))
            # Exact but for Q4_1's minimum, rounded to 11 bits: 15 / 2048 of the largest step.
            largest = max(float(array.max()) for name, array in stored.items() if name.endswith("scales"))
            tolerance = 15 / 2048 * largest if dtype is DType.Q4_1 else 0
            np.testing.assert_allclose(dequantize(tensor), expected, rtol=0, atol=tolerance)


def logprobs(checkpoint: Checkpoint) -> list[float]:
    backend = load(checkpoint, dtype="float32", max_model_len=32, max_batch_tokens=32)
    backend.allocate_kv(1)
    tokens = [3, 17, 40, 8, 22, 5]
    row = PlanRow(1, tokens, 0, [0], targets=[*tokens[1:], 9])
    return [t.logprob for t in backend.run(Plan((row,))).rows[0].target_logprobs]


@pytest.mark.parametrize(("config", "symmetric"), [v[1:3] for v in VARIANTS], ids=[v[0] for v in VARIANTS])
def test_the_model_computes_what_its_expansion_does(tmp_path: Path, config: dict[str, Any], symmetric: bool) -> None:
    stored, expanded = model(config, symmetric=symmetric)
    ours = logprobs(opened(tmp_path / "packed", config, stored))
    expected = logprobs(open_checkpoint(write_dir(tmp_path / "plain", CONFIG, expanded)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 if symmetric else 0.02)


def test_bytes_are_computed_late_and_alike(tmp_path: Path) -> None:
    tensor = opened(tmp_path, AWQ_CONFIG, model(AWQ_CONFIG)[0]).tensors["layers.1.down"]
    assert callable(tensor.source)
    row = tensor.nbytes // tensor.shape[0]
    assert tensor.data == tensor.data
    assert tensor.rows(3, 5).data == tensor.data[3 * row : 5 * row]


def test_biases_of_zeros_are_left_out(tmp_path: Path) -> None:
    stored, _ = model(GPTQ_CONFIG)
    stored |= {n.replace("qweight", "bias"): np.zeros(a.shape[1], np.float16) for n, a in stored.items() if "qw" in n}
    assert "layers.0.q_bias" not in opened(tmp_path / "zero", GPTQ_CONFIG, stored).tensors
    stored["model.layers.0.mlp.up_proj.bias"] = np.ones(96, np.float16)
    with pytest.raises(ModelFileError, match=r"up_proj\.bias"):
        opened(tmp_path / "one", GPTQ_CONFIG, stored)


CONFIGS: list[tuple[dict[str, Any], type[ModelError], str]] = [
    ({"quant_method": "awq", "group_size": 32}, ModelFileError, "bits is missing"),
    ({**AWQ_CONFIG, "quant_method": "fp8"}, UnsupportedModel, "quant_method 'fp8' is not served; served: awq, gptq"),
    ({**AWQ_CONFIG, "version": "gemv"}, UnsupportedModel, "version 'gemv' is not served; served: gemm"),
    ({**AWQ_CONFIG, "zero_point": False}, UnsupportedModel, "zero_point"),
    ({**AWQ_CONFIG, "bits": 8}, UnsupportedModel, "bits '8' is not served; served: 4"),
    ({**AWQ_CONFIG, "bits": "4"}, ModelFileError, "bits must be an integer"),
    ({**AWQ_CONFIG, "group_size": 16}, UnsupportedModel, "group_size 16 is not served; multiples of 32"),
    ({**AWQ_CONFIG, "group_size": 0}, ModelFileError, "group_size must be between"),
    ({**GPTQ_CONFIG, "bits": 3}, UnsupportedModel, "served: 4, 8"),
    ({**GPTQ_CONFIG, "checkpoint_format": "marlin"}, UnsupportedModel, "checkpoint_format 'marlin'"),
    ({**GPTQ_CONFIG, "pack_dtype": "int8"}, UnsupportedModel, "pack_dtype"),
    ({**GPTQ_CONFIG, "dynamic": {"lm_head": {"bits": 8}}}, UnsupportedModel, "dynamic"),
    ({"bits": 4}, UnsupportedModel, "quant_method 'unnamed'"),
]


@pytest.mark.parametrize(("config", "kind", "words"), CONFIGS)
def test_other_configurations_are_refused(
    tmp_path: Path, config: dict[str, Any], kind: type[ModelError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        opened(tmp_path, config, model(AWQ_CONFIG)[0])


def grown(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array])


STEM = "model.layers.1.self_attn.o_proj"
HOSTILE: list[tuple[str, Any, type[ModelError], str]] = [
    ("qweight", None, ModelFileError, r"missing for llama: layers\.1\.o|unexpected for llama"),
    ("qzeros", None, ModelFileError, r"o_proj\.qzeros is missing"),
    ("scales", None, ModelFileError, r"o_proj\.scales: missing"),
    ("qweight", grown, ModelFileError, "128 inputs and 64 outputs do not go into 2 groups of 32"),
    ("qweight", lambda a: a[:4], ModelFileError, "do not go into 2 groups"),
    ("qweight", lambda a: a[:, :32], ModelFileError, r"qweight: has shape \[8, 32\]; \[8, 64\] is expected"),
    ("qweight", lambda a: a.reshape(-1), ModelFileError, "not a matrix"),
    ("qzeros", grown, ModelFileError, r"qzeros: has shape \[4, 8\]"),
    ("qzeros", lambda a: a[:, :4], ModelFileError, r"qzeros: has shape \[2, 4\]"),
    ("scales", grown, ModelFileError, "do not go into 4 groups"),
    ("scales", lambda a: a.astype(np.float32), UnsupportedModel, "scales: stored as F32; served: F16"),
    ("g_idx", lambda a: a[::-1].copy(), UnsupportedModel, r"o_proj\.g_idx: inputs are grouped out of order"),
    ("g_idx", lambda a: a + 1, ModelFileError, r"g_idx: names a group outside 0\.\.1"),
    ("g_idx", lambda a: -a, ModelFileError, "names a group outside"),
    ("g_idx", lambda a: a[:5], ModelFileError, r"g_idx: has shape \[5\]; \[64\] is expected"),
    ("weight", lambda _: np.ones((64, 64), np.float32), ModelFileError, "is stored packed and as"),
]


@pytest.mark.parametrize(("part", "change", "kind", "words"), HOSTILE)
def test_files_that_lie_are_refused(tmp_path: Path, part: str, change: Any, kind: type[ModelError], words: str) -> None:
    stored, _ = model(GPTQ_CONFIG)
    name = f"{STEM}.{part}"
    if change is None:
        del stored[name]
    else:
        stored[name] = np.ascontiguousarray(change(stored.get(name)))
    with pytest.raises(kind, match=words):
        opened(tmp_path, GPTQ_CONFIG, stored)


def test_no_packed_tensors_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"says gptq, but no tensor is named \*\.qweight"):
        opened(tmp_path, GPTQ_CONFIG, model(GPTQ_CONFIG)[1])


def test_eight_bits_with_other_zeros(tmp_path: Path) -> None:
    config = {**GPTQ_CONFIG, "bits": 8}
    with pytest.raises(UnsupportedModel, match="eight bits with zeros other than 128"):
        opened(tmp_path, config, model(config, symmetric=False)[0])


@pytest.mark.parametrize("scale", [np.inf, np.nan, 60000.0])
def test_scales_that_are_no_numbers(tmp_path: Path, scale: float) -> None:
    stored, _ = model(AWQ_CONFIG, symmetric=False)
    stored[f"{STEM}.scales"][0, 0] = scale
    stored[f"{STEM}.qzeros"][0, 0] = 0x7FFFFFFF
    with np.errstate(all="ignore"), pytest.raises(ModelFileError, match=r"NaN or infinite|beyond float16"):
        load(opened(tmp_path, AWQ_CONFIG, stored), dtype="float32", max_model_len=32, max_batch_tokens=32)


def test_packed_tensors_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"unexpected for llama: .*scales"):
        open_checkpoint(write_dir(tmp_path, CONFIG, model(GPTQ_CONFIG)[0]))
