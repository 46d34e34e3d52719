"""What drafts, as the settings say; and settings that make no sense together."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from headrace import config
from headrace.cli.speculation import prepare
from headrace.cli.words import ModelWords
from headrace.errors import ConfigError
from headrace.types import BLOCK_SIZE
from headrace.weights import open_checkpoint
from tests.parity import tiny

LENGTH = 100


@pytest.fixture(scope="module")
def words(model: Path) -> ModelWords:
    checkpoint = open_checkpoint(model)
    return ModelWords(checkpoint.text, checkpoint.spec.vocab_size)


def settings(model: Path | None = None, method: str | None = None) -> config.Config:
    given = {"speculative_model": None if model is None else str(model), "speculative_method": method}
    return config.load({name: value for name, value in given.items() if value is not None}, env={})


def test_off_unless_asked_for(words: ModelWords) -> None:
    for method in (None, "off"):
        drafting = prepare(settings(method=method), words, 49152, LENGTH)
        assert drafting.speculation is None
        assert drafting.resident == drafting.reserved == ()
        drafting.close()


def test_ngram_takes_no_memory(words: ModelWords) -> None:
    given = config.load({"speculative_method": "ngram", "num_speculative_tokens": "5"}, env={})
    drafting = prepare(given, words, 49152, LENGTH)
    assert drafting.speculation is not None
    assert drafting.speculation.config.num_tokens == 5
    assert drafting.backend is None


def test_a_draft_model_is_loaded_and_counted(words: ModelWords, model: Path) -> None:
    drafting = prepare(settings(model), words, 49152, LENGTH)
    assert drafting.backend is not None
    assert drafting.resident[0].bytes > 50e6
    assert drafting.reserved[0].bytes == 4 * -(-LENGTH // BLOCK_SIZE) * drafting.backend.kv_block_bytes
    drafting.close()


def test_contradictions_are_refused(words: ModelWords, model: Path) -> None:
    with pytest.raises(ConfigError, match="does not say which"):
        prepare(settings(method="draft_model"), words, 49152, LENGTH)
    for method in ("off", "ngram"):
        with pytest.raises(ConfigError, match="has no use for speculative_model"):
            prepare(settings(model, method), words, 49152, LENGTH)


def test_another_tokenizer_is_refused(words: ModelWords, tmp_path: Path) -> None:
    tiny.save(tiny.build(tiny.llama()), tmp_path)
    letters = {chr(ord("a") + i): i for i in range(26)}
    other = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    other.decoder = tokenizers.decoders.ByteLevel()
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"tokenizer of .* is another one"):
        prepare(settings(tmp_path), words, 49152, LENGTH)
