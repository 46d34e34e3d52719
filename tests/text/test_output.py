"""One sequence's text: stop strings, stop tokens, min_tokens, offsets, the end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.text.output import OutputDelta, OutputText
from headrace.text.tokenizer import Tokenizer, load_tokenizer
from headrace.types import FinishReason, SamplingParams, TokenEvent
from headrace.weights import TextSource
from tests.text.test_stop import search
from tests.text.vocabularies import ByteLevel, SentencePiece

EOS = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_byte_level: ByteLevel) -> Tokenizer:
    return load_tokenizer(TextSource(gguf=tiny_byte_level.metadata, bos_token_id=1, eos_token_ids=frozenset({EOS})))


def event(*tokens: int, finish: FinishReason | None = None, stop_token: int | None = None) -> TokenEvent:
    return TokenEvent("r", 0, tokens, finish=finish, stop_token=stop_token)


def run(tokenizer: Tokenizer, events: list[TokenEvent], **sampling: Any) -> list[OutputDelta]:
    output = OutputText(tokenizer, SamplingParams(max_tokens=100, **sampling), prompt=[5])
    return [output.push(each) for each in events]


def one_each(tokenizer: Tokenizer, text: str) -> list[TokenEvent]:
    """An event for each token; the last one ends the sequence by EOS."""
    ids = tokenizer.encode(text)
    return [*map(event, ids), event(EOS, finish=FinishReason.STOP, stop_token=EOS)]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    text=st.text("the whl🙂", max_size=30),
    stops=st.lists(st.text("the whl🙂", min_size=1, max_size=3), max_size=3),
    include=st.booleans(),
    logprobs=st.sampled_from([None, 1]),
    size=st.integers(1, 4),
)
def test_the_text_ends_at_the_first_stop_string(
    text: str, stops: list[str], include: bool, logprobs: int | None, size: int, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(text)
    events = [event(*ids[at : at + size]) for at in range(0, len(ids), size)]
    events.append(event(EOS, finish=FinishReason.STOP, stop_token=EOS))
    deltas = run(tokenizer, events, stop=tuple(stops), include_stop_str_in_output=include, logprobs=logprobs)
    expected, stop = search(text, stops, include)
    assert "".join(delta.text for delta in deltas) == expected
    assert [delta.stop for delta in deltas if delta.stop] == ([stop] if stop else [])


def test_tokens_after_the_stop_string_are_not_used(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("turn the wheel")
    parts = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids]
    (delta, rest) = run(tokenizer, [event(*ids), event(*ids)], stop=(parts[1],), logprobs=0)
    assert delta == OutputDelta(parts[0], parts[1], 2, (0, len(parts[0])))
    assert rest == OutputDelta()


def test_stop_tokens_are_left_out_unless_asked_for(tokenizer: Tokenizer) -> None:
    (wheel,) = tokenizer.encode(" wheel")
    last = event(wheel, finish=FinishReason.STOP, stop_token=wheel)
    assert run(tokenizer, [last], stop_token_ids=frozenset({wheel}))[0] == OutputDelta("", None, 1)
    asked = run(tokenizer, [last], stop_token_ids=frozenset({wheel}), include_stop_str_in_output=True)
    assert asked[0].text == " wheel"


def test_special_tokens_show_only_when_asked_for(tokenizer: Tokenizer) -> None:
    events = [event(1), event(EOS, finish=FinishReason.LENGTH)]
    assert "".join(d.text for d in run(tokenizer, events)) == ""
    assert "".join(d.text for d in run(tokenizer, events, skip_special_tokens=False)) == "<|im_start|><|im_end|>"


def test_stop_strings_within_min_tokens_are_text(tokenizer: Tokenizer) -> None:
    events = one_each(tokenizer, " wheel wheel wheel")
    assert "".join(d.text for d in run(tokenizer, events, stop=("wheel",))) == " "
    deltas = run(tokenizer, events, stop=("wheel",), min_tokens=1)
    assert "".join(d.text for d in deltas) == " wheel "
    assert [d.stop for d in deltas] == [None, "wheel", None, None]


def test_what_was_held_back_comes_at_the_end(tokenizer: Tokenizer) -> None:
    deltas = run(tokenizer, one_each(tokenizer, "the mill"), stop=("mill wheel",))
    assert "".join(d.text for d in deltas) == "the mill"
    assert deltas[-1].text.endswith("mill")
    half = tokenizer.encode("🦫")[0]
    assert [d.text for d in run(tokenizer, [event(half, finish=FinishReason.LENGTH)])] == ["\ufffd"]
    assert [d.text for d in run(tokenizer, [event(half, finish=FinishReason.LENGTH)], stop=("\ufffd",))] == [""]


def test_offsets_point_into_the_text(tokenizer: Tokenizer) -> None:
    text = "the 🦫 turns the wheel"
    deltas = run(tokenizer, one_each(tokenizer, text), logprobs=2)
    offsets = [offset for delta in deltas for offset in delta.offsets]
    assert len(offsets) == len(tokenizer.encode(text)) + 1
    assert offsets == sorted(offsets)
    at = 0
    for token, offset in zip(tokenizer.encode(text), offsets, strict=False):
        assert offset == len(text.encode()[:at].decode("utf-8", "ignore"))
        at += len(tokenizer.token_bytes(token))
    assert offsets[-1] == len(text)


@pytest.mark.parametrize(("prompt", "expected"), [([], "the"), ([1], "the"), ([1, 400], " the")])
def test_a_leading_space_after_a_prompt(prompt: list[int], expected: str, tiny_sentencepiece: SentencePiece) -> None:
    pieces = load_tokenizer(TextSource(gguf=tiny_sentencepiece.metadata, bos_token_id=1))
    output = OutputText(pieces, SamplingParams(max_tokens=9), prompt=prompt)
    assert output.push(event(*pieces.encode("the", add_special=False))).text == expected
