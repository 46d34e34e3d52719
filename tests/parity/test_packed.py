"""AWQ and GPTQ models: every backend computes what the reference does, with them and with their weights expanded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.weights import open_checkpoint
from tests.parity.conftest import BACKENDS, Load, load_reference
from tests.parity.steps import Rows, compute
from tests.weights.files import CONFIG, write_dir
from tests.weights.packing import AWQ_CONFIG, GPTQ_CONFIG, model

TOKENS = [3, 17, 40, 8, 22, 5, 31, 2, 19, 44, 7, 13, 26, 38, 1, 9, 30, 21, 11]
CONFIGS = {"awq": (AWQ_CONFIG, False), "gptq": (GPTQ_CONFIG, True), "gptq8": ({**GPTQ_CONFIG, "bits": 8}, True)}


def logprobs(load: Load, folder: Path) -> Rows:
    backend = load(open_checkpoint(folder), 64)
    backend.allocate_kv(2)
    rows = compute(backend, TOKENS, [1, 0], [12, 7])
    backend.close()
    return rows


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("config", "symmetric"), CONFIGS.values(), ids=CONFIGS)
def test_packed_models(tmp_path: Path, backend: str, config: dict[str, object], symmetric: bool) -> None:
    stored, expanded = model(config, symmetric=symmetric)
    packed = write_dir(tmp_path / "packed", {**CONFIG, "quantization_config": config}, stored)
    plain = write_dir(tmp_path / "plain", CONFIG, expanded)
    ours = logprobs(BACKENDS[backend], packed)
    np.testing.assert_allclose(ours, logprobs(load_reference, packed), rtol=0, atol=1e-4)
    # Q4_1's minimum is rounded to 11 bits; these models' logits reach 40.
    np.testing.assert_allclose(ours, logprobs(load_reference, plain), rtol=0, atol=1e-4 if symmetric else 0.05)
