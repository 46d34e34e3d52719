"""Encoding and decoding against the tokenizers that the vocabularies come from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, processors

from headrace.errors import InvalidRequest, ModelFileError, UnsupportedModel
from headrace.text.tokenizer import Tokenizer, load_tokenizer
from headrace.weights import TextSource
from tests.text.vocabularies import ByteLevel, SentencePiece

TEXTS = st.text(
    st.one_of(st.sampled_from("the wheel  \n\t.'12<|>é水🙂\u0301"), st.characters(exclude_categories=["Cs"])),
    max_size=60,
)
EVERY_TIME = settings(derandomize=True, deadline=None, max_examples=300)


@pytest.fixture(scope="module")
def from_gguf(tiny_byte_level: ByteLevel) -> Tokenizer:
    return load_tokenizer(TextSource(gguf=tiny_byte_level.metadata, bos_token_id=1, eos_token_ids=frozenset({2})))


@pytest.fixture(scope="module")
def pieces(tiny_sentencepiece: SentencePiece) -> Tokenizer:
    return load_tokenizer(TextSource(gguf=tiny_sentencepiece.metadata, bos_token_id=1, eos_token_ids=frozenset({2})))


@pytest.fixture(scope="module")
def from_json(tiny_byte_level: ByteLevel, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    core = Core.from_str(tiny_byte_level.oracle.to_str())
    core.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    core.enable_truncation(4)
    core.enable_padding(length=16)
    core.save(str(path))
    return load_tokenizer(TextSource(tokenizer_json=str(path)))


@EVERY_TIME
@given(text=TEXTS)
def test_byte_level_from_gguf_is_its_oracle(text: str, from_gguf: Tokenizer, tiny_byte_level: ByteLevel) -> None:
    ids = from_gguf.encode(text)
    assert ids == tiny_byte_level.oracle.encode(text).ids
    assert from_gguf.decode(ids, skip_special=False) == text


@EVERY_TIME
@given(text=TEXTS)
def test_sentencepiece_from_gguf_is_its_oracle(text: str, pieces: Tokenizer, tiny_sentencepiece: SentencePiece) -> None:
    oracle = tiny_sentencepiece.oracle
    text = text.replace("\u2581", "").replace("\0", "")  # SentencePiece reads these otherwise, or not at all.
    ids = pieces.encode(text, add_special=False)
    assert ids == oracle.encode(text)
    assert pieces.encode(text) == [1, *ids]
    assert pieces.decode(ids) == oracle.decode(ids) == text


def test_a_json_tokenizer_keeps_its_bos_and_never_cuts_or_pads(from_json: Tokenizer) -> None:
    ids = from_json.encode("What turns the wheel of the mill?")
    assert ids[0] == 1
    assert from_json.decode(ids) == "What turns the wheel of the mill?"
    assert from_json.encode("What turns the wheel of the mill?", add_special=False) == ids[1:]
    assert from_json.encode("") == [1]


def test_bos_as_the_source_says(tiny_byte_level: ByteLevel) -> None:
    plain = load_tokenizer(TextSource(gguf=tiny_byte_level.metadata, bos_token_id=1)).encode("mill")
    told = load_tokenizer(TextSource(gguf=tiny_byte_level.metadata, bos_token_id=1, add_bos=True))
    assert told.encode("mill") == [1, *plain]
    assert told.encode("mill", add_special=False) == plain
    llama3 = load_tokenizer(
        TextSource(gguf={**tiny_byte_level.metadata, "tokenizer.ggml.pre": "llama-bpe"}, bos_token_id=1)
    )
    assert llama3.encode("mill")[0] == 1
    with pytest.raises(ModelFileError, match="BOS"):
        load_tokenizer(TextSource(gguf=tiny_byte_level.metadata, add_bos=True))


def test_special_tokens_are_recognised_and_skipped(from_gguf: Tokenizer) -> None:
    ids = from_gguf.encode("<|im_start|>mill<|im_end|><think>")
    assert ids[0] == 1
    assert ids[-2] == 2
    assert from_gguf.decode(ids) == "mill<think>"
    assert from_gguf.decode(ids, skip_special=False) == "<|im_start|>mill<|im_end|><think>"


@EVERY_TIME
@given(text=TEXTS)
def test_literal_encoding_is_the_ordinary_one_without_special_tokens(
    text: str, from_gguf: Tokenizer, pieces: Tokenizer, from_json: Tokenizer
) -> None:
    for tokenizer in (from_gguf, pieces, from_json):
        ids = tokenizer.encode(text, add_special=False)
        assume(tokenizer.special_ids.isdisjoint(ids))  # hypothesis finds such texts among the constants of our code
        assert tokenizer.encode_literal(text, first=True) == ids


@pytest.mark.parametrize("kind", ["from_gguf", "pieces", "from_json"])
def test_literal_encoding_has_no_special_tokens(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    text = "a<|im_start|>b<|endoftext|></s><s><unk><|im_end|> c"
    ids = tokenizer.encode_literal(text, first=True)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids, skip_special=False) == text


def test_a_special_token_that_merges_can_make_is_still_spelled_out() -> None:
    core = Core(models.BPE({"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4}, [("<", "s"), ("<s", ">")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>"])
    assert Tokenizer(core).encode_literal("<s><s", first=True) == [0, 1, 2, 3]


def test_a_first_piece_prefix_is_left_out_of_continuations() -> None:
    core = Core(models.BPE({"\u2581": 0, "a": 1, "\u2581a": 2, "<s>": 3}, [("\u2581", "a")]))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace()
    core.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(core)
    assert tokenizer.encode("a<s>a", add_special=False) == [2, 3, 1]
    assert tokenizer.encode_literal("a", first=True) == [2]
    assert tokenizer.encode_literal("a", first=False) == [1]
    assert tokenizer.decode([2, 3, 1]) == "aa"


def test_ids_without_a_token_have_no_text(from_gguf: Tokenizer) -> None:
    for token in (from_gguf.vocab_size, 1 << 31, 1 << 40, -1):
        assert from_gguf.token_bytes(token) == b""


def test_token_bytes(from_gguf: Tokenizer) -> None:
    ids = from_gguf.encode("🦫")  # Not in the corpus: several tokens, none of them a character.
    assert len(ids) > 1
    assert b"".join(map(from_gguf.token_bytes, ids)) == "🦫".encode()
    assert from_gguf.token_bytes(1) == b"<|im_start|>"


def test_lone_surrogates_are_refused(from_gguf: Tokenizer) -> None:
    for encode in (from_gguf.encode, from_gguf.encode_with_offsets):
        with pytest.raises(InvalidRequest, match="surrogate"):
            encode("mill \ud800 wheel")


@pytest.mark.parametrize("unit", ["a", " ", "\n", "🙂", "<", "ab ", "1", "<|im_start|>"])
def test_encoding_takes_linear_time(unit: str, smollm2_tokenizer: Tokenizer, pieces: Tokenizer) -> None:
    for tokenizer in (smollm2_tokenizer, pieces):
        times = []
        for size in (30_000, 240_000):
            text = unit * (size // len(unit))
            best = min(_seconds(tokenizer, text) for _ in range(2))
            times.append(best)
        assert times[1] < 24 * times[0] + 0.05, f"8 times the text took {times[1] / times[0]:.0f} times as long"


def _seconds(tokenizer: Tokenizer, text: str) -> float:
    begin = time.thread_time()
    tokenizer.encode(text, add_special=False)
    return time.thread_time() - begin


def test_smollm2_knows_these_texts(smollm2_tokenizer: Tokenizer) -> None:
    """Ids that llama.cpp gives for this model: digits stand alone."""
    assert smollm2_tokenizer.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert smollm2_tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert smollm2_tokenizer.encode("Café déjà vu.") == [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]


@pytest.fixture(scope="module")
def smollm2_oracle(smollm2_tokenizer: Tokenizer) -> Core:
    """The file's vocabulary with the pre-tokenizer of the model's published tokenizer.json."""
    core = Core.from_str(smollm2_tokenizer.to_json())
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return core


@EVERY_TIME
@given(text=TEXTS)
def test_smollm2_is_cut_as_its_own_tokenizer_json_cuts(
    text: str, smollm2_tokenizer: Tokenizer, smollm2_oracle: Core
) -> None:
    ids = smollm2_tokenizer.encode(text)
    assert ids == smollm2_oracle.encode(text).ids
    assert smollm2_tokenizer.decode(ids, skip_special=False) == smollm2_oracle.decode(ids, skip_special_tokens=False)


def test_smollm2_builds_fast(smollm2: TextSource) -> None:
    seconds = []
    for _ in range(3):
        begin = time.thread_time()
        load_tokenizer(smollm2)
        seconds.append(time.thread_time() - begin)
    assert min(seconds) < 0.5, "0.09 s on an idle machine"


def _json(**changes: Any) -> str:
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    return json.dumps({"version": "1.0", "added_tokens": [], "decoder": decoder, "model": model} | changes)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", ModelFileError, "tokenizer.json"),
        ("{}", ModelFileError, "tokenizer.json"),
        ("[" * 100_000, ModelFileError, "tokenizer.json"),
        (_json(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}), ModelFileError, "vocabulary"),
        (_json(decoder=None), UnsupportedModel, "decoder"),
        (_json(decoder={"type": "WordPiece", "prefix": "#", "cleanup": True}), UnsupportedModel, "WordPiece"),
        (
            _json(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
            ),
            UnsupportedModel,
            "exponential",
        ),
        (
            _json(normalizer={"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": "b"}),
            UnsupportedModel,
            "exponential",
        ),
        (_json(model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]), ModelFileError, "no tokens"),
    ],
)
def test_bad_tokenizer_files(text: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(error, match=words):
        load_tokenizer(TextSource(tokenizer_json=str(path)))


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.json"):
        load_tokenizer(TextSource(tokenizer_json=str(tmp_path / "nowhere.json")))
    with pytest.raises(ModelFileError, match="no tokenizer"):
        load_tokenizer(TextSource())


def test_backtracking_beyond_the_library_limit_is_the_requests_fault(tmp_path: Path) -> None:
    """Polynomial backtracking passes the check of expressions; the library gives up with a panic."""
    split = {"type": "Split", "pattern": {"Regex": r"\s*\s*\s*\s*\s*\s*x"}, "behavior": "Isolated", "invert": False}
    path = tmp_path / "tokenizer.json"
    path.write_text(_json(pre_tokenizer=split))
    tokenizer = load_tokenizer(TextSource(tokenizer_json=str(path)))
    with pytest.raises(InvalidRequest, match="retry-limit"):
        tokenizer.encode(" " * 400 + "yx")
    assert tokenizer.encode("ab") == [2]
