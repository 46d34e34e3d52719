"""Chunks and documents: whatever way an answer is cut into deltas, the stream adds up to the JSON answer."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import Draining, EngineDead, InvalidRequest, QueueFull
from headrace.wire.calls import AnswerStyle
from headrace.wire.chunks import DONE, ChatWriter, ChunkWriter, CompletionWriter
from headrace.wire.deltas import Alternative, Delta, Head, PromptPart, ShownToken, Usage
from headrace.wire.failures import describe, error_event, retry_headers, status_of
from headrace.wire.fold import Choice, chat_document, completion_document

HEAD = Head("id-1", 1_700_000_000, 'mo"del', "headrace")
USAGE = Usage(3, 5, 2)


def events_of(stream: bytes) -> list[Any]:
    """The stream as a client sees it; it must end with ``[DONE]``."""
    assert stream.endswith(DONE)
    blocks = stream.decode().split("\n\n")
    assert blocks[-1] == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
    return [json.loads(block[6:]) for block in blocks[:-2]]


def stream_of(writer: ChunkWriter, deltas: Iterable[Delta]) -> bytes:
    return b"".join([writer.delta(delta, USAGE) for delta in deltas]) + writer.end(USAGE)


def folded(deltas: Iterable[Delta], n: int) -> list[Choice]:
    choices = [Choice() for _ in range(n)]
    for delta in deltas:
        choices[delta.index].add(delta)
    return choices


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
SHOWN = st.builds(
    ShownToken,
    token=st.integers(0, 99),
    text=TEXT,
    data=st.binary(max_size=4),
    offset=st.integers(0, 99),
    logprob=st.floats(max_value=0, allow_nan=False) | st.none(),
    rank=st.integers(1, 9),
    top=st.lists(
        st.builds(Alternative, st.integers(0, 99), TEXT, st.binary(max_size=3), st.floats(-50, 0), st.integers(1, 9)),
        max_size=2,
    ).map(tuple),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, list[Delta]]:
    """Deltas of a few choices, interleaved; each choice's last one carries its finish."""
    n = draw(st.integers(1, 3))
    parts = []
    for index in range(n):
        texts = draw(st.lists(TEXT, min_size=1, max_size=5))
        prompt = draw(
            st.none()
            | st.builds(PromptPart, st.just((1, 2)), st.none() | st.just((ShownToken(1, "a", b"a", 0, None),)))
        )
        for k, text in enumerate(texts):
            last = k == len(texts) - 1
            parts.append(
                Delta(
                    index,
                    text,
                    draw(st.lists(st.integers(0, 99), max_size=2).map(tuple)),
                    draw(st.lists(SHOWN, max_size=2).map(tuple)),
                    draw(st.sampled_from(["stop", "length"])) if last else None,
                    draw(st.none() | st.integers(0, 9) | TEXT) if last else None,
                    prompt if k == 0 else None,
                )
            )
    order = draw(st.permutations([part.index for part in parts]))
    queues = {index: iter([part for part in parts if part.index == index]) for index in range(n)}
    return n, [next(queues[index]) for index in order]


STYLES = st.builds(
    AnswerStyle,
    stream=st.just(True),
    include_usage=st.booleans(),
    continuous_usage=st.booleans(),
    return_token_ids=st.booleans(),
    tokens_as_ids=st.booleans(),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(answers(), STYLES)
def test_a_completion_stream_adds_up_to_the_document(answer: tuple[int, list[Delta]], style: AnswerStyle) -> None:
    n, deltas = answer
    events = events_of(stream_of(CompletionWriter(HEAD, style), deltas))
    document = completion_document(HEAD, style, folded(deltas, n), USAGE)
    check_envelope(events, document, style, "text_completion", "text_completion")
    for index, choice in enumerate(document["choices"]):
        pieces = [c for e in events for c in e["choices"] if c["index"] == index]
        assert "".join(p["text"] for p in pieces) == choice["text"]
        assert [p["finish_reason"] for p in pieces][:-1] == [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        assert pieces[-1]["stop_reason"] == choice["stop_reason"]
        for key in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            whole = [x for p in pieces if p["logprobs"] for x in p["logprobs"][key]]
            assert whole == (choice["logprobs"][key] if choice["logprobs"] else [])
        assert [t for p in pieces for t in p.get("token_ids", [])] == choice.get("token_ids", [])
        for key in ("prompt_logprobs", "prompt_token_ids"):
            whole = [json.loads(json.dumps(choice[key]))] if key in choice else []
            assert [p[key] for p in pieces if key in p] == whole


@settings(max_examples=200, deadline=None, derandomize=True)
@given(answers(), STYLES)
def test_a_chat_stream_adds_up_to_the_document(answer: tuple[int, list[Delta]], style: AnswerStyle) -> None:
    n, deltas = answer
    events = events_of(stream_of(ChatWriter(HEAD, style), deltas))
    document = chat_document(HEAD, style, folded(deltas, n), USAGE)
    check_envelope(events, document, style, "chat.completion.chunk", "chat.completion")
    for index, choice in enumerate(document["choices"]):
        pieces = [c for e in events for c in e["choices"] if c["index"] == index]
        assert pieces[0]["delta"] == {"role": "assistant", "content": ""}
        assert all(set(p["delta"]) == {"content"} for p in pieces[1:-1])
        assert pieces[-1]["delta"] == {}
        assert "".join(p["delta"].get("content", "") for p in pieces) == choice["message"]["content"]
        assert [p["finish_reason"] for p in pieces] == [None] * (len(pieces) - 1) + [choice["finish_reason"]]
        assert pieces[-1]["stop_reason"] == choice["stop_reason"]
        whole = [x for p in pieces if p["logprobs"] for x in p["logprobs"]["content"]]
        assert whole == (choice["logprobs"]["content"] if choice["logprobs"] else [])
        assert [t for p in pieces for t in p.get("token_ids", [])] == choice.get("token_ids", [])


def check_envelope(events: list[Any], document: Any, style: AnswerStyle, kind: str, whole: str) -> None:
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert (document["object"], document["usage"]) == (whole, usage)
    for event in events:
        assert (event["id"], event["created"], event["model"]) == ("id-1", 1_700_000_000, 'mo"del')
        assert event["object"] == kind
    body = events
    if style.include_usage:
        assert events[-1]["choices"] == []
        assert events[-1]["usage"] == usage
        body = events[:-1]
    for event in body:
        assert len(event["choices"]) == 1
        if style.continuous_usage:
            assert event["usage"] == usage
        elif style.include_usage:
            assert event["usage"] is None
        else:
            assert "usage" not in event


def test_nothing_is_sent_for_text_that_is_held_back() -> None:
    style = AnswerStyle(stream=True)
    assert CompletionWriter(HEAD, style).delta(Delta(0), USAGE) == b""
    chat = ChatWriter(HEAD, style)
    assert b'"role"' in chat.delta(Delta(0), USAGE)
    assert chat.delta(Delta(0), USAGE) == b""


def test_minus_infinity_is_a_number_in_json() -> None:
    token = ShownToken(1, "a", b"a", 0, float("-inf"), 1, (Alternative(2, "b", b"b", float("-inf"), 2),))
    stream = stream_of(ChatWriter(HEAD, AnswerStyle(stream=True)), [Delta(0, "a", (), (token,), "stop")])
    assert events_of(stream)[1]["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("n is wrong", "n"), 400, "BadRequestError"),
        (QueueFull("full"), 429, "RateLimitError"),
        (Draining("bye"), 503, "ServiceUnavailableError"),
        (EngineDead("dead"), 503, "ServiceUnavailableError"),
        (ValueError("/secret/path"), 500, "InternalServerError"),
    ],
)
def test_errors(error: Exception, status: int, kind: str) -> None:
    body = describe(error)["error"]
    assert (status_of(error), body["code"], body["type"]) == (status, status, kind)
    assert "secret" not in body["message"]
    assert events_of(error_event(error)) == [{"error": body}]


def test_retry_headers() -> None:
    assert retry_headers(QueueFull("full", 2.4)) == [(b"retry-after", b"3")]
    assert retry_headers(QueueFull("full", 1e9)) == [(b"retry-after", b"120")]
    assert retry_headers(EngineDead("dead")) == [(b"x-should-retry", b"false")]
    assert retry_headers(InvalidRequest("x")) == []
