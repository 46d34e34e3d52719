"""The scanner against a slow and obvious reader that parses every event, whatever the pieces are."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench.sse import Scanner
from headrace.bench.stats import Sample
from tests.bench.scripted_server import DONE, chat_token, event, token, usage

TEXTS = st.text(max_size=12) | st.sampled_from(['"', '"text":"x"', "\\", '\\"content\\":', "\n\n", "data: [DONE]", " "])
ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})


def slow_count(stream: bytes) -> int:
    count = 0
    for line in stream.split(b"\n\n"):
        payload = line.strip().removeprefix(b"data:").strip()
        if payload and not payload.startswith((b"[DONE]", b":")):
            for choice in json.loads(payload).get("choices", []):
                delta = choice.get("delta", {})
                count += bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content"))
    return count


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(TEXTS, max_size=8), st.lists(st.integers(0, 10**6), max_size=12), st.booleans(), st.booleans())
def test_any_cut_gives_the_same_counts(texts: list[str], places: list[int], chat: bool, crlf: bool) -> None:
    stream = ROLE + b": ping\n\n" if chat else b""
    for i, text in enumerate(texts):
        if chat:
            stream += chat_token(text, "reasoning_content" if i % 3 == 2 else "content")
        else:
            stream += token(text)
    stream += FINISH + usage(11, 22, 3) + DONE
    expected = slow_count(stream)
    if crlf:
        stream = stream.replace(b"\n", b"\r\n")
    scanner = Scanner(Sample(0.0))
    assert sum(scanner.feed(piece) for piece in cut(stream, places)) == expected
    scanner.finish()
    sample = scanner.sample
    assert (sample.error, sample.prompt_tokens, sample.output_tokens, sample.cached_tokens) == (None, 11, 22, 3)


def test_json_with_spaces_is_read_too() -> None:
    scanner = Scanner(Sample(0.0))
    spaced = b'data: {"choices": [{"text": "%s"}]}\n\n'
    assert [scanner.feed(spaced % b"a"), scanner.feed(spaced % b"")] == [1, 0]


def test_usage_on_the_last_token_is_found() -> None:
    scanner = Scanner(Sample(0.0))
    scanner.feed(event({"choices": [{"text": "a"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}) + DONE)
    scanner.finish()
    assert (scanner.sample.prompt_tokens, scanner.sample.output_tokens) == (1, 2)


@pytest.mark.parametrize(
    ("stream", "kind", "words"),
    [
        (token("a"), "truncated", "without [DONE]"),
        (event({"error": {"message": "out of blocks"}}) + DONE, "stream error", "out of blocks"),
        (event({"error": "broken"}) + DONE, "stream error", "broken"),
        (b"data: {nope\n\n" + DONE, "stream error", "not JSON"),
        (b"data: " + b"x" * (17 << 20), "stream error", "longer than"),
    ],
)
def test_a_broken_stream_is_an_error(stream: bytes, kind: str, words: str) -> None:
    scanner = Scanner(Sample(0.0))
    scanner.feed(stream)
    scanner.finish()
    assert scanner.sample.error == kind
    assert words in scanner.sample.detail
