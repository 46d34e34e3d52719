"""Vocabularies that several files use, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.text.tokenizer import Tokenizer, load_tokenizer
from headrace.weights import Store, TextSource, open_checkpoint
from headrace.weights.index import configured_index
from tests.text.vocabularies import ByteLevel, SentencePiece, byte_level, sentencepiece


@pytest.fixture(scope="session")
def smollm2() -> TextSource:
    """The text part of the default model, from the user's cache or pulled into it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Store(cache / "headrace", index_url=configured_index(os.environ, Path.home())).resolve()
    return open_checkpoint(path).text


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: TextSource) -> Tokenizer:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="session")
def tiny_byte_level() -> ByteLevel:
    return byte_level()


@pytest.fixture(scope="session")
def tiny_sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> SentencePiece:
    return sentencepiece(tmp_path_factory.mktemp("sentencepiece"))
