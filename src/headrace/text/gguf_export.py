"""A tokenizer.json → the ``tokenizer.*`` metadata of a GGUF file: what `headrace.text.gguf_vocabulary` reads.

GGUF names a pre-tokenizer and carries no rules, so the names are tried: the first whose tokenizer encodes `SAMPLES`
and every added token exactly as the original does is written. A tokenizer that none of them reproduces is refused.
"""

from __future__ import annotations

import array
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.errors import HeadraceError, UnsupportedModel
from headrace.text.pretokenizers import PRE_TOKENIZERS
from headrace.text.source import TextSource
from headrace.text.tokenizer import Tokenizer, load_tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_IDS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
_ENDS = ("eos", "eot", "eom")

SAMPLES = (
    "The quick brown fox jumps over the lazy dog. It's 3 o'clock; they'll've gone, SHE'S here — won't you?",
    "In 1984, 1234567 people paid $12.50 (or 99%) for 0x1F44D; 3.14159e-10 is small, 10,000,000 is not.",
    "def f(x):\n    return {'a': x**2, \"b\": [1, 2, 3]}  # comment\n\n\n\tif x != y and not z:\r\n\t\tpass\n",
    "  leading, trailing  \n \n\n  and   runs     of spaces\t\ttabs\n\n\n\nblank lines \n",
    "Zażółć gęślą jaźń. Ünïcödé, naïve café; Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
    "你好，世界。今天是2024年3月15日。こんにちは世界、カタカナ。안녕하세요 세계 १२३ ไทย",
    "emoji 😀👍🏽 👩‍👩‍👧‍👦 ❤️ and symbols ∑∫√≠ ½ ² ™ €100 £5 «quotes» “curly” ‘single’ …",
    "e\u0301 versus \u00e9, \ufb01 ligature, \u200bzero width, \u00a0no-break, \u3000wide space, \x07 bell",
    "https://example.org/a_b-c?d=e&f=%20g#h user@mail.example CamelCaseWords snake_case_words ALLCAPS aBcDeF",
    '!!!??? ... --- === *** /// \\\\\\ ||| &&& @@@ ### ~~~ ``` <tag attr="v">text</tag> [1] (2) {3}',
    "I'M you'Re 'tis '90s rock'n'roll l'été d'Artagnan O'Neill's\n'quoted'\n\"'nested'\"",
)


def exported_vocabulary(source: TextSource, vocab_size: int) -> dict[str, Any]:
    """The metadata for a file with ``vocab_size`` embeddings, proven to encode as the original does.

    Raises:
        UnsupportedModel: no way to say it in GGUF reproduces this tokenizer.
        ModelFileError: the tokenizer.json is broken.
    """
    original = load_tokenizer(source)
    described = json.loads(Path(source.tokenizer_json or "").read_text("utf-8"))
    shared = _shared(source, original, described)
    tried = []
    for candidate in _candidates(described, vocab_size):
        metadata = shared | candidate
        tried.append(str(candidate.get("tokenizer.ggml.pre", candidate["tokenizer.ggml.model"])))
        if _encodes_alike(original, _Exported(metadata, source), described):
            return metadata
    raise UnsupportedModel(
        f"{source.tokenizer_json}: GGUF has no words for this tokenizer; tried: {', '.join(tried) or 'none, not BPE'}"
    )


class _Exported:
    """The text part that reading ``metadata`` back gives (`headrace.text.source.TextSource`)."""

    def __init__(self, metadata: Mapping[str, Any], source: TextSource) -> None:
        self.tokenizer_json: str | None = None
        self.gguf: Mapping[str, Any] | None = metadata
        self.add_bos: bool | None = metadata["tokenizer.ggml.add_bos_token"]
        self.bos_token_id: int | None = metadata.get("tokenizer.ggml.bos_token_id")
        self.eos_token_ids = source.eos_token_ids
        self.chat_templates = source.chat_templates
        self.special_tokens = source.special_tokens


def _shared(source: TextSource, original: Tokenizer, described: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens, BOS rule and templates."""
    ids = {token["content"]: token["id"] for token in described.get("added_tokens", ())}
    found = {short: ids[text] for name, short in _IDS.items() if (text := source.special_tokens.get(name)) in ids}
    if source.bos_token_id is not None:
        found["bos"] = source.bos_token_id
    ends = sorted(source.eos_token_ids)
    if len(ends) > len(_ENDS):
        raise UnsupportedModel(f"{len(ends)} end tokens: GGUF can name {len(_ENDS)}")
    if ends:
        main = found.get("eos") if found.get("eos") in ends else ends[0]
        # Readers of a file without eot guess one by its text; naming one token twice keeps them from it.
        found |= {"eos": main, "eot": main} | dict(zip(_ENDS, [main, *(i for i in ends if i != main)], strict=False))
    metadata: dict[str, Any] = {f"tokenizer.ggml.{name}_token_id": token for name, token in found.items()}
    metadata["tokenizer.ggml.add_bos_token"] = _adds_bos(original, found.get("bos"), str(source.tokenizer_json))
    for name, template in source.chat_templates.items():
        metadata["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = template
    return metadata


def _adds_bos(original: Tokenizer, bos: int | None, where: str) -> bool:
    plain, special = (original.encode(SAMPLES[0], add_special=add) for add in (False, True))
    if special == plain:
        return False
    if bos is not None and special == [bos, *plain]:
        return True
    raise UnsupportedModel(f"{where}: adds more than BOS to a text, which GGUF cannot say")


def _candidates(described: Mapping[str, Any], vocab_size: int) -> Iterator[dict[str, Any]]:
    model = described.get("model", {})
    if model.get("type") != "BPE":
        return
    tokens, types = _tokens(described, vocab_size)
    metadata: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": array.array("i", types)}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if not model.get("byte_fallback"):
        metadata |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": merges}
        tried = []
        for name, pre in PRE_TOKENIZERS.items():
            if pre not in tried:  # names that share their rules
                tried.append(pre)
                yield metadata | {"tokenizer.ggml.pre": name}
        return
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    scores = array.array("f", [-float(ranks.get(token, len(ranks))) for token in tokens])
    metadata |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
    for prefix in (True, False):
        yield metadata | {"tokenizer.ggml.add_space_prefix": prefix}


def _tokens(described: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Texts and types by id; ids that no token has are unused ones, as llama.cpp's converter pads."""
    by_id = {i: text for text, i in described["model"]["vocab"].items()}
    kinds = {}
    if described["model"].get("byte_fallback"):
        kinds = {i: _BYTE for i, text in by_id.items() if len(text) == 6 and text.startswith("<0x") and text[-1] == ">"}
    for token in described.get("added_tokens", ()):
        by_id[token["id"]] = token["content"]
        kinds[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    unknown = described["model"].get("unk_token")
    count = max(by_id, default=-1) + 1
    if count > vocab_size:
        raise UnsupportedModel(f"{count} tokens, but embeddings for {vocab_size} only")
    texts = [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    types = [kinds.get(i, _NORMAL if i in by_id else _UNUSED) for i in range(vocab_size)]
    return texts, [_UNKNOWN if text == unknown else kind for text, kind in zip(texts, types, strict=True)]


def _encodes_alike(original: Tokenizer, exported: _Exported, described: Mapping[str, Any]) -> bool:
    try:
        made = load_tokenizer(exported)
    except HeadraceError:
        return False
    added = [token["content"] for token in described.get("added_tokens", ())]
    samples = (*SAMPLES, *(f"before{token}after {token} {token}" for token in added[:256]))
    return all(
        original.encode(text) == made.encode(text) and original.decode(ids) == made.decode(ids)
        for text in samples
        for ids in [original.encode(text, add_special=False)]
    )
