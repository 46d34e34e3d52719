"""Small vocabularies of both kinds, trained here, with the library objects that serve as oracles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece as spm
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The mill wheel turns while the water runs along the channel to the mill.",
    "What's that? It's 42 o'clock, they'll say; we've 1,234 more things to do!",
    "def wheel(turns: int) -> str:\n    return 'turn ' * turns\n",
    "Größe, façade, naïve, Ångström; 水車は回る。 수차가 돈다. Мельница крутится 🙂🙃",
    "<p>Some <b>bold</b> text</p> [1, 2, 3] {'a': 1} a|b x<y y>z",
] * 20
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<think>", "</think>"]

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""As it stands in Llama 3's tokenizer.json."""


@dataclass(frozen=True)
class ByteLevel:
    """``oracle`` was trained; ``metadata`` is what a GGUF file would say of it."""

    oracle: Tokenizer
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class SentencePiece:
    """``oracle`` was trained; ``metadata`` is what a GGUF file would say of it."""

    oracle: spm.SentencePieceProcessor
    metadata: Mapping[str, Any]


def byte_level() -> ByteLevel:
    """A byte-level BPE with Llama 3's way of cutting words; special tokens are 0, 1 and 2."""
    oracle = Tokenizer(models.BPE())
    oracle.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    oracle.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    oracle.train_from_iterator(CORPUS, trainer)
    oracle.add_tokens([AddedToken(text, normalized=False) for text in USER_DEFINED])
    vocabulary = oracle.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = dict.fromkeys(SPECIAL, 3) | dict.fromkeys(USER_DEFINED, 4)
    model = json.loads(oracle.to_str())["model"]
    return ByteLevel(oracle, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smaug-bpe",  # Llama 3's expression without its flags.
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(token, 1) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    })  # fmt: skip


def sentencepiece(folder: Path, *, prefix: bool = True) -> SentencePiece:
    """A SentencePiece BPE with byte fallback, as Llama 2 has it: 0 <unk>, 1 <s>, 2 </s>, then 256 bytes."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(line for text in CORPUS for line in text.splitlines()), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tiny"), model_type="bpe", vocab_size=600, byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=prefix, minloglevel=2,
        remove_extra_whitespaces=False, split_digits=True, user_defined_symbols=["<start_of_turn>"],
        allow_whitespace_only_pieces=True,
    )  # fmt: skip
    oracle = spm.SentencePieceProcessor(model_file=str(folder / "tiny.model"))
    ids = range(oracle.get_piece_size())
    return SentencePiece(oracle, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [oracle.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [oracle.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [_kind(oracle, i) for i in ids],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
    })  # fmt: skip


def _kind(oracle: spm.SentencePieceProcessor, token: int) -> int:
    """GGUF's number for a piece's type."""
    if oracle.is_unknown(token):
        return 2
    if oracle.is_control(token):
        return 3
    if oracle.is_byte(token):
        return 6
    return 4 if oracle.id_to_piece(token) == "<start_of_turn>" else 1
