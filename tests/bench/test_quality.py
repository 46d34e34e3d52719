"""benchmarks/quality.py: shuffling changes nothing but the order, and the numbers are those of the tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from benchmarks import quality
from headrace.weights import open_checkpoint
from tests.parity import tiny
from tests.parity.conftest import load_native, load_reference
from tests.parity.steps import compute
from tests.weights.files import VOCAB, write_gguf

CONFIGS: dict[str, Any] = {
    "llama": tiny.llama,
    "biases": lambda: tiny.llama(attention_bias=True),
    "qwen3": lambda: transformers.Qwen3Config(**tiny.SIZES, head_dim=32, tie_word_embeddings=True),
    "gemma3": tiny.gemma3,
}
TOKENS = np.random.default_rng(4).integers(3, tiny.VOCAB, 40).tolist()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_shuffled_channels_compute_the_same(tmp_path: Path, config: Any) -> None:
    tiny.save(tiny.build(config()), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    other = quality.shuffled(checkpoint)
    assert other.tensors["layers.0.up"].data != checkpoint.tensors["layers.0.up"].data
    rows = []
    for each in (checkpoint, other):
        backend = load_reference(each, 64)
        backend.allocate_kv(3)
        rows.append(compute(backend, TOKENS, [2, 0, 1], [40]))
    np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=1e-4)


def test_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save(tiny.build(tiny.llama()), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    monkeypatch.setattr(quality, "CHUNK", 16)
    monkeypatch.setattr(quality, "DECODED", 4)
    texts = {"a": TOKENS, "b": TOKENS[::-1][:19]}
    base = quality.read(checkpoint, "float32", texts)
    expected: list[float] = []
    for tokens in texts.values():
        backend = load_native(checkpoint, 64)
        backend.allocate_kv(3)
        rows = compute(backend, tokens, [2, 0, 1], [len(tokens)])[:-1]
        backend.close()
        np.testing.assert_array_equal(base.chosen[len(expected) :][: len(rows)], rows.argmax(-1))
        expected += [-rows[i, tokens[i + 1]] for i in range(len(rows))]
    np.testing.assert_allclose(base.nll, expected, rtol=0, atol=1e-5)

    line = quality.compared("float32", base, base)
    assert line["perplexity"] == pytest.approx(math.exp(np.mean(expected)), rel=1e-4)
    assert (line["nll_change"], line["top1_agreement"], line["bits_per_weight"]) == (0, 1, 32)
    eight = quality.read(quality.in_precision(checkpoint, quality.VARIANTS["int8"]), "float32", texts)
    worse = quality.compared("int8", eight, base)
    assert 0 < abs(worse["nll_change"]) < 0.1
    assert 0.8 < worse["top1_agreement"] <= 1
    assert 8.4 < worse["bits_per_weight"] < 8.6
    assert len(quality.table([line, worse]).splitlines()) == 4


def test_a_quantised_model_is_compared_with_its_own_expansion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", kind="Q4_0")
    monkeypatch.setattr(quality, "CHUNK", 16)
    monkeypatch.setattr(quality, "DECODED", 4)
    rng = np.random.default_rng(1)
    base, stored, *integers = quality._as_stored(open_checkpoint(path), {"a": rng.integers(0, VOCAB, 30).tolist()})
    assert (base["variant"], base["bits_per_weight"]) == ("expanded, float32", 32)
    assert (stored["variant"], stored["bits_per_weight"]) == ("Q4_0", 4.5)
    assert [each["variant"] for each in integers] == ["Q4_0 x int16", "Q4_0 x int8"]
    assert abs(stored["nll_change"]) < 0.5  # bfloat16 in a net of random weights, whose logits reach 40


def test_the_texts_are_there_and_small() -> None:
    texts = quality.read_texts(lambda text: [*text.encode()])
    assert len(texts) >= 8
    assert sum(map(len, texts.values())) <= 60_000
    assert min(map(len, texts.values())) > 1_000
