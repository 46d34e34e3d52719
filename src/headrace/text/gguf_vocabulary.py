"""From the ``tokenizer.*`` metadata of a GGUF file to a `tokenizers.Tokenizer`.

Two kinds: ``gpt2`` (byte-level BPE with merges) and ``llama`` (SentencePiece BPE with scores and byte fallback). The
metadata is hostile: every length, type and index is checked before it is used.

A file does not say how its model's own tokenizer.json treats the space before text; where the two could differ, this
follows llama.cpp: with ``add_space_prefix``, a space is put before the text and after every special token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headrace.errors import ModelFileError, UnsupportedModel
from headrace.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer

MAX_TOKENS = 4_000_000
MAX_PIECE_CHARS = 512
"""Longest SentencePiece piece, in characters. Real ones stay under 64."""
MAX_VOCABULARY_CHARS = 8_000_000
"""All SentencePiece pieces together; Gemma's 262,144 have 1.7 million. Recovering merges takes about 0.6 µs each."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"


def build(metadata: Mapping[str, Any]) -> tuple[Tokenizer, Mapping[int, str]]:
    """Build the tokenizer that the metadata describes, without its BOS and EOS rules.

    Beside it, the text of the ids that it cannot name, because an earlier id has the same text.

    Raises:
        UnsupportedModel: the tokenizer's kind or its pre-tokenizer is not known.
        ModelFileError: the metadata is malformed or contradicts itself.
    """
    kind = _string(metadata, "tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise UnsupportedModel(f"tokenizer.ggml.model is {kind!r}; known: {', '.join(sorted(builders))}")
    tokens = _tokens(metadata)
    types = _types(metadata, len(tokens))
    if kind == "llama":
        # Runs of spaces are stored as real spaces, but merging sees normalised text, where they are U+2581.
        runs = [i for i, token in enumerate(tokens) if types[i] == _USER_DEFINED and not token.strip(" ")]
        for i in runs:
            tokens[i] = _SPACE * len(tokens[i])
    vocabulary = _vocabulary(tokens)
    tokenizer = builders[kind](metadata, tokens, types, vocabulary)
    if len(vocabulary) == len(tokens):
        return tokenizer, {}
    return tokenizer, {i: token for i, token in enumerate(tokens) if vocabulary[token] != i}


def default_add_bos(metadata: Mapping[str, Any]) -> bool:
    """Whether BOS goes first in a file that does not say: what llama.cpp assumes of the kind and pre-tokenizer."""
    if metadata.get("tokenizer.ggml.model") == "llama":
        return True
    pre = PRE_TOKENIZERS.get(str(metadata.get("tokenizer.ggml.pre", "default")))
    return pre is not None and pre.add_bos


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise ModelFileError(f"tokenizer.ggml.tokens has {len(tokens)} entries; between 1 and {MAX_TOKENS} are allowed")
    return tokens


def _string(metadata: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise ModelFileError(f"{key} is missing or not a string")
    return value


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, (list, tuple)) or set(map(type, value)) - {str}:
        raise ModelFileError(f"{key} is missing or not an array of strings")
    return list(value)


def _types(metadata: Mapping[str, Any], count: int) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return [_NORMAL] * count
    types = list(types)
    if len(types) != count:
        raise ModelFileError(f"tokenizer.ggml.token_type has {len(types)} entries for {count} tokens")
    return types


def _byte_level(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], vocabulary: dict[str, int]
) -> Tokenizer:
    name = _string(metadata, "tokenizer.ggml.pre", "default")
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        raise UnsupportedModel(f"tokenizer.ggml.pre is {name!r}; known: {', '.join(sorted(PRE_TOKENIZERS))}")
    pairs = _pairs(_strings(metadata, "tokenizer.ggml.merges"))
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _splitter(pre)
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def _splitter(pre: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in pre.splits]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _pairs(merges: list[str]) -> list[tuple[str, str]]:
    """The two parts of each merge: of all at once, if each has its one space."""
    parts = iter(" ".join(merges).split(" "))
    pairs = list(zip(parts, parts, strict=False))
    if list(map(" ".join, pairs)) == merges:
        return pairs
    return [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], vocabulary: dict[str, int]
) -> Tokenizer:
    scores = list(metadata.get("tokenizer.ggml.scores", ()))
    if len(scores) != len(tokens):
        raise ModelFileError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    if unknown is not None and not (isinstance(unknown, int) and 0 <= unknown < len(tokens)):
        raise ModelFileError(f"tokenizer.ggml.unknown_token_id {unknown!r} is not a token of the vocabulary")
    has_bytes = sum(kind == _BYTE for kind in types) == 256
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(tokens, types, scores),
            byte_fallback=has_bytes,
            fuse_unk=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def _merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that a scored vocabulary implies, best first: SentencePiece joins the pair whose whole scores best.

    User-defined pieces come first, longest first, which makes them match greedily. Control and byte pieces neither
    join nor result, so no text can be merged into them.
    """
    normal = [i for i, kind in enumerate(types) if kind in (_NORMAL, _UNUSED)]
    user_defined = [i for i, kind in enumerate(types) if kind == _USER_DEFINED]
    normal.sort(key=[-score for score in scores].__getitem__)
    user_defined.sort(key=lambda i: -len(tokens[i]))
    wholes = [tokens[i] for i in user_defined + normal]
    longest = max(map(len, wholes), default=0)
    if longest > MAX_PIECE_CHARS:
        raise ModelFileError(f"tokenizer.ggml.tokens has a piece of {longest} characters; at most {MAX_PIECE_CHARS}")
    if sum(map(len, wholes)) > MAX_VOCABULARY_CHARS:
        raise ModelFileError(f"tokenizer.ggml.tokens has more than {MAX_VOCABULARY_CHARS} characters in all")
    joinable = frozenset(wholes)
    merges = []
    for whole in wholes:
        for cut in range(len(whole) - 1, 0, -1):
            left = whole[:cut]
            if left in joinable:
                right = whole[cut:]
                if right in joinable:
                    merges.append((left, right))
    return merges


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """Token text to id. Of two equal texts the first id wins, as when text is looked up in llama.cpp."""
    return dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Make control tokens special, and user-defined ones (``<think>``) match whole in the text."""
    control = [
        AddedToken(t, normalized=False, special=True)
        for t, kind in zip(tokens, types, strict=True)
        if kind != _NORMAL and kind in (_CONTROL, _UNKNOWN) and t
    ]
    user_defined = [
        AddedToken(t, normalized=False, special=False)
        for t, kind in zip(tokens, types, strict=True)
        if kind == _USER_DEFINED and t.strip(_SPACE)
    ]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(user_defined)
