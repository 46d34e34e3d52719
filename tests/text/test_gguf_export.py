"""tokenizer.json → GGUF metadata: what is written encodes as the original, or nothing is."""

from __future__ import annotations

import array
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import pre_tokenizers, processors

from headrace.errors import UnsupportedModel
from headrace.text.gguf_export import exported_vocabulary
from headrace.text.pretokenizers import PRE_TOKENIZERS
from headrace.text.tokenizer import Tokenizer, load_tokenizer
from headrace.weights import TextSource
from tests.text import vocabularies
from tests.text.vocabularies import SentencePiece

TEXTS = Path(__file__).parents[1] / "parity" / "prompts.txt"


def as_json(tokenizer: Tokenizer, folder: Path, **changes: Any) -> str:
    described = json.loads(tokenizer.to_json()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return str(folder / "tokenizer.json")


def read_back(metadata: dict[str, Any], source: TextSource) -> Tokenizer:
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    add_bos = metadata["tokenizer.ggml.add_bos_token"]
    return load_tokenizer(
        TextSource(gguf=metadata, add_bos=add_bos, bos_token_id=bos, eos_token_ids=source.eos_token_ids)
    )


def test_smollm2_comes_back(smollm2: TextSource, smollm2_tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = TextSource(
        tokenizer_json=as_json(smollm2_tokenizer, tmp_path),
        chat_templates={"default": "{{ messages }}", "tool_use": "{{ tools }}"},
        special_tokens=smollm2.special_tokens,
        bos_token_id=smollm2.bos_token_id,
        eos_token_ids=smollm2.eos_token_ids,
    )
    metadata = exported_vocabulary(source, 49152)
    original = smollm2.gguf or {}
    assert PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]] == PRE_TOKENIZERS["smollm"]
    for key in ("model", "tokens", "merges", "bos_token_id", "eos_token_id", "add_bos_token"):
        assert metadata[f"tokenizer.ggml.{key}"] == original.get(f"tokenizer.ggml.{key}", False), key
    assert metadata["tokenizer.chat_template.tool_use"] == "{{ tools }}"
    made = read_back(metadata, source)
    text = TEXTS.read_text("utf-8")
    assert made.encode(text) == smollm2_tokenizer.encode(text)
    assert made.special_ids == smollm2_tokenizer.special_ids
    assert all(made.bytes_of[i] == smollm2_tokenizer.bytes_of[i] for i in range(49152))


def test_llama3s_way_of_cutting_words_is_recognised(tmp_path: Path) -> None:
    source = byte_level(tmp_path)
    metadata = exported_vocabulary(source, 800)
    assert "(?i:" in PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]].splits[0]
    text = TEXTS.read_text("utf-8")
    assert read_back(metadata, source).encode(text) == load_tokenizer(source).encode(text)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_comes_back(tiny_sentencepiece: SentencePiece, tmp_path: Path, prefix: bool) -> None:
    given = {**tiny_sentencepiece.metadata, "tokenizer.ggml.add_space_prefix": prefix}
    original = load_tokenizer(TextSource(gguf=given, add_bos=False))
    source = TextSource(tokenizer_json=as_json(original, tmp_path))
    metadata = exported_vocabulary(source, original.vocab_size)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"] is prefix
    text = TEXTS.read_text("utf-8")
    assert read_back(metadata, source).encode(text) == original.encode(text)


def byte_level(folder: Path, change: Callable[[Core], None] | None = None) -> TextSource:
    core = Core.from_str(vocabularies.byte_level().oracle.to_str())
    if change is not None:
        change(core)
    core.save(str(folder / "tokenizer.json"))
    return TextSource(tokenizer_json=str(folder / "tokenizer.json"), eos_token_ids=frozenset({0}))


def test_a_pre_tokenizer_without_a_name_is_refused(tmp_path: Path) -> None:
    def reversed_words(core: Core) -> None:
        split = pre_tokenizers.Split("o", behavior="isolated")
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([split, byte])

    with pytest.raises(UnsupportedModel, match="GGUF has no words for this tokenizer; tried: default, "):
        exported_vocabulary(byte_level(tmp_path, reversed_words), 4096)


def test_more_than_bos_around_a_text_is_refused(tmp_path: Path) -> None:
    def framed(core: Core) -> None:
        token = core.id_to_token(0)
        core.post_processor = processors.TemplateProcessing(single=f"$A {token}", special_tokens=[(token, 0)])

    with pytest.raises(UnsupportedModel, match="adds more than BOS"):
        exported_vocabulary(byte_level(tmp_path, framed), 4096)


def test_too_many_end_tokens(tmp_path: Path) -> None:
    source = byte_level(tmp_path)
    many = TextSource(tokenizer_json=source.tokenizer_json, eos_token_ids=frozenset({0, 1, 2, 3}))
    with pytest.raises(UnsupportedModel, match="4 end tokens: GGUF can name 3"):
        exported_vocabulary(many, 4096)


def test_vocabularies_that_are_not_bpe(tmp_path: Path) -> None:
    words = {"model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}}
    core = Core.from_str(vocabularies.byte_level().oracle.to_str())
    described = json.loads(core.to_str()) | {"added_tokens": [], **words}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UnsupportedModel, match="none, not BPE"):
        exported_vocabulary(TextSource(tokenizer_json=str(tmp_path / "tokenizer.json")), 16)


def test_ids_without_tokens_are_unused(smollm2: TextSource, smollm2_tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = TextSource(tokenizer_json=as_json(smollm2_tokenizer, tmp_path), eos_token_ids=smollm2.eos_token_ids)
    metadata = exported_vocabulary(source, 49160)
    assert metadata["tokenizer.ggml.tokens"][-1] == "[PAD49159]"
    kinds = metadata["tokenizer.ggml.token_type"]
    assert isinstance(kinds, array.array)
    assert list(kinds[-9:]) == [1, *[5] * 8]
    with pytest.raises(UnsupportedModel, match="49152 tokens, but embeddings for 40000 only"):
        exported_vocabulary(source, 40000)
