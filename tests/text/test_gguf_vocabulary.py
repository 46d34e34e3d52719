"""GGUF metadata that lies, and what SentencePiece metadata says beyond plain pieces."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.text import gguf_vocabulary
from headrace.text.pretokenizers import PRE_TOKENIZERS
from headrace.text.tokenizer import Tokenizer, load_tokenizer
from headrace.weights import TextSource
from tests.text.vocabularies import LLAMA3_SPLIT, ByteLevel, SentencePiece, sentencepiece


def load(metadata: Mapping[str, Any]) -> Tokenizer:
    return load_tokenizer(TextSource(gguf=metadata))


BYTES_CHANGES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": "bert"}, UnsupportedModel, "'bert'; known: gpt2, llama"),
    ({"model": None}, ModelFileError, "not a string"),
    ({"model": ["gpt2"]}, ModelFileError, "not a string"),
    ({"pre": "brand-new"}, UnsupportedModel, "'brand-new'; known: .*llama-bpe.*qwen2.*smollm"),
    ({"pre": 7}, ModelFileError, "not a string"),
    ({"tokens": []}, ModelFileError, "0 entries"),
    ({"tokens": None}, ModelFileError, "tokens"),
    ({"tokens": [1, 2]}, ModelFileError, "array of strings"),
    ({"tokens": "abc"}, ModelFileError, "array of strings"),
    ({"token_type": [1]}, ModelFileError, "token_type has 1 entries"),
    ({"token_type": 5}, ModelFileError, "GGUF"),
    ({"merges": None}, ModelFileError, "merges"),
    ({"merges": ["a b c d"]}, ModelFileError, "vocabulary"),
    ({"merges": ["ab"]}, ModelFileError, "GGUF"),
    ({"merges": [5]}, ModelFileError, "array of strings"),
]
PIECES_CHANGES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"scores": None}, ModelFileError, "GGUF"),
    ({"scores": [1.0]}, ModelFileError, "scores has 1 entries"),
    ({"scores": ["x"] * 600}, ModelFileError, "GGUF"),
    ({"unknown_token_id": 10**9}, ModelFileError, "unknown_token_id"),
    ({"unknown_token_id": "x"}, ModelFileError, "unknown_token_id"),
]


@pytest.mark.parametrize(("change", "error", "words"), BYTES_CHANGES)
def test_byte_level_metadata_that_lies(
    change: dict[str, Any], error: type[Exception], words: str, tiny_byte_level: ByteLevel
) -> None:
    with pytest.raises(error, match=words):
        load({**tiny_byte_level.metadata, **{f"tokenizer.ggml.{key}": value for key, value in change.items()}})


@pytest.mark.parametrize(("change", "error", "words"), PIECES_CHANGES)
def test_sentencepiece_metadata_that_lies(
    change: dict[str, Any], error: type[Exception], words: str, tiny_sentencepiece: SentencePiece
) -> None:
    with pytest.raises(error, match=words):
        load({**tiny_sentencepiece.metadata, **{f"tokenizer.ggml.{key}": value for key, value in change.items()}})


@pytest.mark.parametrize("tokens", [["a" * 100_000], ["a" * 400 + str(i) for i in range(30_000)]], ids=["one", "many"])
def test_pieces_whose_merges_would_take_forever_are_refused(tokens: list[str]) -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
    }
    begin = time.thread_time()
    with pytest.raises(ModelFileError, match="characters"):
        load(metadata)
    assert time.thread_time() - begin < 1


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_builds_and_loses_nothing(name: str, tiny_byte_level: ByteLevel) -> None:
    tokenizer = load({**tiny_byte_level.metadata, "tokenizer.ggml.pre": name})
    text = "The wheel's 1234.50 turns, WE'LL see;  \n\n\tdef f(x):\r\n    x += 1 # größe 水車 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_table_has_llama3s_published_expression() -> None:
    assert PRE_TOKENIZERS["llama-bpe"].splits == (LLAMA3_SPLIT,)


def test_ignore_merges_takes_whole_words(tiny_byte_level: ByteLevel) -> None:
    """Llama 3's rule: a word in the vocabulary is one token even if no merge makes it."""
    metadata = dict(tiny_byte_level.metadata)
    tokens = [*metadata["tokenizer.ggml.tokens"], "zqzq"]
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens)}
    assert load({**metadata, "tokenizer.ggml.pre": "llama-bpe"}).encode("zqzq") == [len(tokens) - 1]
    assert len(load({**metadata, "tokenizer.ggml.pre": "dbrx"}).encode("zqzq")) == 4


def test_without_a_space_prefix(tmp_path: Path) -> None:
    vocabulary = sentencepiece(tmp_path, prefix=False)
    tokenizer = load(vocabulary.metadata)
    for text in ("the wheel", " the wheel", "", "  ", "a  b"):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == vocabulary.oracle.encode(text)
        assert tokenizer.decode(ids) == text


def test_user_defined_pieces_match_whole_and_runs_of_spaces_greedily(tiny_sentencepiece: SentencePiece) -> None:
    """Gemma's way: the runs are user-defined, written with real spaces, and may be of any length up to theirs."""
    metadata = dict(tiny_sentencepiece.metadata)
    count = len(metadata["tokenizer.ggml.tokens"])
    runs = [" " * length for length in range(2, 9)]
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *runs]
    metadata["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], *[-1000.0] * len(runs)]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *[4] * len(runs)]
    metadata["tokenizer.ggml.add_space_prefix"] = False
    tokenizer = load(metadata)
    (eight,) = tokenizer.encode(" " * 8, add_special=False)
    assert eight == count + 6
    assert tokenizer.encode(" " * 21, add_special=False) == [eight, eight, count + 3]
    assert tokenizer.decode([eight, count]) == " " * 10, "count is a second id for two spaces"
    assert tokenizer.vocab_size == count + 7
    turn = metadata["tokenizer.ggml.tokens"].index("<start_of_turn>")
    assert turn in tokenizer.encode("a<start_of_turn>b", add_special=False)
    assert turn not in tokenizer.special_ids


def test_control_pieces_are_never_merged_into(tiny_sentencepiece: SentencePiece) -> None:
    tokenizer = load(tiny_sentencepiece.metadata)
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode_literal("<s> </s> <unk>", first=True))


def test_a_derived_tokenizer_can_be_kept_as_json(tiny_byte_level: ByteLevel, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(load(tiny_byte_level.metadata).to_json(), encoding="utf-8")
    text = "<|im_start|>The wheel's 水車<|im_end|>"
    kept = load_tokenizer(TextSource(tokenizer_json=str(path)))
    assert kept.encode(text) == load(tiny_byte_level.metadata).encode(text)
    assert isinstance(gguf_vocabulary.build(tiny_byte_level.metadata)[0], Core)
