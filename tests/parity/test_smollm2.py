"""The default model: greedy text equal to `transformers` in float32, and closer to it in bfloat16 than its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.backends import Backend
from headrace.types import GREEDY, Plan, PlanRow
from headrace.weights import open_checkpoint
from headrace.weights.spec import Checkpoint
from tests.parity import smollm2
from tests.parity.conftest import BACKENDS, load_native
from tests.parity.steps import blocks_for

LENGTH = 64
TIE = 1e-3
"""Logits, which go up to some 30, less than this apart are equal in float32."""
MAX_MODEL_LEN = 256


def greedy(backend: Backend, prompts: list[list[int]], length: int) -> list[list[int]]:
    """All prompts at once, as a server would: ``length`` greedy tokens each, EOS or not."""
    tables, used = [], 0
    for prompt in prompts:
        size = blocks_for(len(prompt) + length)
        tables.append(range(used, used + size))
        used += size
    texts: list[list[int]] = [[] for _ in prompts]
    for _ in range(length):
        rows = []
        for i, (prompt, text, blocks) in enumerate(zip(prompts, texts, tables, strict=True)):
            start = len(prompt) + len(text) - 1 if text else 0
            rows.append(PlanRow(i, text[-1:] or prompt, start, blocks, GREEDY))
        for text, result in zip(texts, backend.run(Plan(tuple(rows))).rows, strict=True):
            assert result.token is not None, result.error
            text.append(result.token)
    return texts


@pytest.fixture(scope="module")
def checkpoint(smollm2_path: Path) -> Checkpoint:
    return open_checkpoint(smollm2_path, max_model_len=MAX_MODEL_LEN)


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    return smollm2.prompts(checkpoint)


@pytest.fixture(scope="module")
def theirs(checkpoint: Checkpoint) -> Any:
    return smollm2.in_transformers(checkpoint)


@pytest.fixture(scope="module")
def texts(checkpoint: Checkpoint, prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    """Our greedy text in float32."""
    backend = load_native(checkpoint, MAX_MODEL_LEN, "float32")
    backend.allocate_kv(sum(blocks_for(len(p) + LENGTH) for p in prompts))
    yield greedy(backend, prompts, LENGTH)
    backend.close()


def test_greedy_text_in_float32(prompts: list[list[int]], texts: list[list[int]], theirs: Any) -> None:
    """Equal texts and equal choices along one text are the same thing; the latter takes one pass per prompt. Once in
    2048 tokens two logits are 2e-4 apart, which the order of a processor's sums may turn around.
    """
    assert len(prompts) == 32
    for prompt, text in zip(prompts, texts, strict=True):
        assert smollm2.regrets(theirs, prompt, text).max() < TIE


def test_reference_agrees(checkpoint: Checkpoint, prompts: list[list[int]], theirs: Any) -> None:
    backend = BACKENDS["reference"](checkpoint, MAX_MODEL_LEN)
    backend.allocate_kv(8)
    for prompt, text in zip(prompts[:2], greedy(backend, prompts[:2], 6), strict=True):
        assert smollm2.regrets(theirs, prompt, text).max() < TIE
    backend.close()


def test_bfloat16_is_at_least_as_close(
    checkpoint: Checkpoint, prompts: list[list[int]], texts: list[list[int]], theirs: Any
) -> None:
    """Teacher-forced top-1 agreement with the float32 text, ours against that of `transformers` in bfloat16."""
    backend = load_native(checkpoint, MAX_MODEL_LEN, "bfloat16")
    backend.allocate_kv(blocks_for(MAX_MODEL_LEN))
    rounded = theirs.bfloat16()
    ours_agree = theirs_agree = 0
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = [*prompt, *text]
        row = PlanRow(0, tokens[:-1], 0, range(blocks_for(len(tokens))), targets=tokens[1:], target_logprobs=1)
        (result,) = backend.run(Plan((row,))).rows
        ours = [t.top[0][0] for t in result.target_logprobs[len(prompt) - 1 :]]
        ours_agree += int(np.sum(np.array(ours) == text))
        theirs_agree += int(np.sum(smollm2.choices(rounded, prompt, text) == text))
    backend.close()
    total = sum(map(len, texts))
    print(f"top-1 agreement with float32: ours {ours_agree / total:.2%}, transformers {theirs_agree / total:.2%}")
    assert ours_agree >= theirs_agree
