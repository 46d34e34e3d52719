"""Text that arrives in tokens is the text of all the tokens, whatever the cuts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.text.detokenizer import Detokenizer
from headrace.text.tokenizer import Tokenizer, load_tokenizer
from headrace.weights import TextSource
from tests.text.vocabularies import ByteLevel, SentencePiece

EVERY_TIME = settings(derandomize=True, deadline=None, max_examples=300)


@pytest.fixture(scope="module")
def tokenizers(tiny_byte_level: ByteLevel, tiny_sentencepiece: SentencePiece) -> list[Tokenizer]:
    eos = frozenset({2})
    return [
        load_tokenizer(TextSource(gguf=tiny_byte_level.metadata, bos_token_id=1, eos_token_ids=eos)),
        load_tokenizer(TextSource(gguf=tiny_sentencepiece.metadata, bos_token_id=1, eos_token_ids=eos)),
    ]


@EVERY_TIME
@given(data=st.data(), skip=st.booleans(), random_ids=st.booleans())
def test_any_cut_gives_the_whole_text(
    data: st.DataObject, skip: bool, random_ids: bool, tokenizers: list[Tokenizer]
) -> None:
    for tokenizer in tokenizers:
        if random_ids:  # Most are not valid UTF-8.
            ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
        else:
            ids = tokenizer.encode(data.draw(st.text(max_size=20)))
        table = tokenizer.readable_bytes_of if skip else tokenizer.bytes_of
        detokenizer = Detokenizer(table, strip_leading_space=tokenizer.strips_leading_space)
        out, at = "", 0
        while at < len(ids):
            size = data.draw(st.integers(1, 6))
            out += detokenizer.push(ids[at : at + size])
            at += size
        assert out + detokenizer.finish() == tokenizer.decode(ids, skip_special=skip)


@EVERY_TIME
@given(text=st.text(st.sampled_from("aé水🙂👨‍👩‍👧 "), max_size=20))
def test_no_delta_ever_has_half_a_character(text: str, tokenizers: list[Tokenizer]) -> None:
    for tokenizer in tokenizers:
        detokenizer = Detokenizer(tokenizer.bytes_of, strip_leading_space=tokenizer.strips_leading_space)
        deltas = [detokenizer.push([token]) for token in tokenizer.encode(text, add_special=False)]
        assert not any("\ufffd" in delta for delta in deltas)
        assert "".join(deltas) == text
        assert detokenizer.finish() == ""


def test_invalid_bytes_are_replaced_when_that_is_certain() -> None:
    table = {0: b"\xf0\x9f", 1: b"\x99\x82", 2: b"a", 3: b"\xff"}
    detokenizer = Detokenizer(table)
    assert detokenizer.push([0]) == ""
    assert detokenizer.push([2]) == "\ufffda"
    assert detokenizer.push([3]) == "\ufffd"
    assert detokenizer.push([0]) == ""
    assert detokenizer.push([1]) == "🙂"
    assert detokenizer.push([0]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_a_continuation_keeps_its_leading_space(tokenizers: list[Tokenizer]) -> None:
    pieces = tokenizers[1]
    ids = pieces.encode("the wheel", add_special=False)
    assert Detokenizer(pieces.bytes_of).push(ids) == " the wheel"
    assert Detokenizer(pieces.bytes_of, strip_leading_space=True).push(ids) == "the wheel"


def test_a_token_costs_about_a_microsecond(smollm2_tokenizer: Tokenizer) -> None:
    ids = smollm2_tokenizer.encode("The mill wheel turns while the water runs along the channel. " * 500)
    detokenizer = Detokenizer(smollm2_tokenizer.readable_bytes_of)
    detokenizer.push(ids)
    begin = time.thread_time()
    for token in ids:
        detokenizer.push((token,))
    assert (time.thread_time() - begin) / len(ids) < 10e-6, "0.7 µs on an idle machine"
