"""TGI's bodies and answers: parameters as TGI reads them, and a stream that adds up to the answer."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import (
    EngineDead,
    EngineError,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    Unauthorized,
    Unsupported,
)
from headrace.wire import tgi
from headrace.wire.calls import Call, Prompts
from headrace.wire.deltas import Alternative, Delta, Head, PromptPart, ShownToken, Timing, Usage
from headrace.wire.fold import Choice
from headrace.wire.limits import Limits
from headrace.wire.tgi_requests import parse_generate, parse_root, parse_stream

LIMITS = Limits(max_model_len=512, vocab_size=1000)
HEAD = Head("tgi-1", 1, "tiny", "f")
USAGE = Usage(7, 5, 0, timing=Timing(0.001, 0.002, 0.03, 0.1))


def call_of(stream: bool = True, inputs: str = "hi", **parameters: Any) -> Call:
    return parse_root({"inputs": inputs, "parameters": parameters, "stream": stream}, LIMITS, {})


def test_sampling_is_on_when_tgi_would_sample() -> None:
    def temperature(body: dict[str, Any]) -> float:
        return parse_generate({"inputs": "x", **body}, LIMITS, {"temperature": 0.3}).sampling.temperature

    assert temperature({}) == 1.0, "without parameters TGI samples"
    assert temperature({"parameters": None}) == 1.0
    assert temperature({"parameters": {}}) == 0.0
    assert temperature({"parameters": {"temperature": 1.0}}) == 0.0
    assert temperature({"parameters": {"temperature": 0.5}}) == 0.5
    assert temperature({"parameters": {"top_k": 3}}) == 1.0
    assert temperature({"parameters": {"top_p": 0.9}}) == 1.0
    assert temperature({"parameters": {"do_sample": True}}) == 1.0
    greedy, sampled = call_of(), call_of(do_sample=True)
    assert (greedy.sampling.seed, sampled.sampling.seed is not None) == (None, True)


def test_fields_arrive() -> None:
    call = call_of(
        stream=False,
        best_of=2,
        temperature=0.7,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        top_k=5,
        top_p=0.9,
        typical_p=None,
        max_new_tokens=9,
        stop=["a", "b"],
        truncate=3,
        details=True,
        decoder_input_details=True,
        top_n_tokens=2,
        watermark=True,
        grammar={"type": "regex", "value": "a+"},
    )
    sampling = call.sampling
    assert isinstance(call.content, Prompts)
    assert (call.content.items, call.content.truncate, call.content.echo) == (("hi",), 3, False)
    assert (call.n, call.max_tokens, sampling.max_tokens) == (2, 9, 9)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 5, 0.9)
    assert (sampling.repetition_penalty, sampling.frequency_penalty) == (1.1, 0.1)
    assert (sampling.stop, sampling.include_stop_str_in_output) == (("a", "b"), True)
    assert (sampling.logprobs, sampling.prompt_logprobs) == (2, 0)
    assert (call.style.details, call.style.full_text, call.style.stream) == (True, True, False)
    assert call.watermark
    assert call.constraint is not None
    assert call.constraint.kind == "regex"


def test_full_text_is_the_default_of_the_root_alone() -> None:
    body = {"inputs": "x", "parameters": {}}
    assert parse_root(body, LIMITS, {}).style.full_text
    assert not parse_generate(body, LIMITS, {}).style.full_text
    assert not parse_stream(body, LIMITS, {}).style.full_text
    assert not call_of(return_full_text=False).style.full_text


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({}, "inputs must be a string"),
        ({"inputs": ["a"]}, "inputs must be a string"),
        ({"inputs": "x", "options": {}}, "unknown field 'options'"),
        ({"inputs": "x", "parameters": {"temprature": 1}}, "unknown field parameters.'temprature'"),
        ({"inputs": "x", "parameters": {"temperature": 0}}, "parameters.temperature must be a number greater than 0"),
        ({"inputs": "x", "parameters": {"top_k": 0}}, "parameters.top_k"),
        ({"inputs": "x", "parameters": {"typical_p": 0.5}}, "typical_p is not supported"),
        ({"inputs": "x", "parameters": {"adapter_id": "a"}}, "adapter_id is not supported"),
        ({"inputs": "x", "parameters": {"best_of": 2}}, "greedy answers are all the same"),
        ({"inputs": "x", "parameters": {"best_of": 2, "do_sample": True, "seed": 1}}, "seed must not be set"),
        ({"inputs": "x", "parameters": {"best_of": 2, "do_sample": True}, "stream": True}, "when streaming"),
        ({"inputs": "x", "parameters": {"decoder_input_details": True}, "stream": True}, "when streaming"),
        ({"inputs": "x", "parameters": {"truncate": 0}}, "parameters.truncate"),
        ({"inputs": "x", "parameters": {"stop": "a"}}, "parameters.stop must be a list"),
        ({"inputs": "x", "parameters": {"grammar": {"type": "yaml", "value": "a"}}}, "parameters.grammar"),
    ],
)
def test_refusals_name_the_field(body: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidRequest, Unsupported), match=match):
        parse_root(body, LIMITS, {})


def test_stream_belongs_to_its_routes() -> None:
    with pytest.raises(InvalidRequest, match="/generate_stream"):
        parse_generate({"inputs": "x", "stream": True}, LIMITS, {})
    with pytest.raises(InvalidRequest, match="/generate"):
        parse_stream({"inputs": "x", "stream": False}, LIMITS, {})
    assert parse_stream({"inputs": "x"}, LIMITS, {}).style.stream


LOGPROB = st.floats(max_value=0, allow_nan=False)
OTHER = st.builds(Alternative, st.integers(0, 9), st.just("a"), st.just(b"a"), LOGPROB, st.just(1))
TOKEN = st.builds(
    lambda token, data, logprob, top: ShownToken(token, data.decode("utf-8", "replace"), data, 0, logprob, 1, top),
    st.integers(0, 99),
    st.binary(max_size=4) | st.text(max_size=3).map(lambda text: text.encode("utf-8", "replace")),
    LOGPROB,
    st.lists(OTHER, max_size=2).map(tuple),
)


@st.composite
def answers(draw: st.DrawFn) -> list[Delta]:
    """One choice's deltas; text may be held back, and the end be a token or none."""
    tokens = draw(st.lists(st.lists(TOKEN, min_size=1, max_size=2), min_size=1, max_size=6))
    texts = [draw(st.text(st.characters(codec="utf-8"), max_size=4)) for _ in tokens]
    finish = draw(st.sampled_from(["stop", "length"]))
    reason = draw(st.none() | st.just("END")) if finish == "stop" else None
    last = len(tokens) - 1
    deltas = [Delta(0, text, (), tuple(group)) for text, group in zip(texts, tokens, strict=True)]
    deltas[last] = Delta(0, texts[last], (), tuple(tokens[last]), finish, reason)
    return deltas


@settings(max_examples=200, deadline=None, derandomize=True)
@given(answers(), st.booleans(), st.integers(0, 2), st.booleans())
def test_a_stream_adds_up_to_the_answer(deltas: list[Delta], details: bool, top: int, full: bool) -> None:
    call = call_of(details=details, top_n_tokens=top, return_full_text=full, do_sample=True, seed=3)
    writer = tgi.TokenWriter(HEAD, call)
    stream = b"".join([writer.delta(delta, USAGE) for delta in deltas]) + writer.end(USAGE)
    blocks = stream.decode().split("\n\n")
    assert blocks[-1] == ""
    assert all(block.startswith("data:{") and "\n" not in block for block in blocks[:-1])
    events = [json.loads(block[5:]) for block in blocks[:-1]]

    choice = Choice()
    for delta in deltas:
        choice.add(delta)
    answer = tgi.document(HEAD, call, [choice], USAGE)
    whole = tgi._details(call, choice)
    assert [event["index"] for event in events] == list(range(1, len(choice.logprobs) + 1))
    assert [event["token"] for event in events] == whole["tokens"]
    assert [event["generated_text"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["generated_text"] == answer["generated_text"]
    assert answer["generated_text"].startswith("hi" if full else "")
    assert [event.get("top_tokens") for event in events] == whole.get("top_tokens", [None] * len(events))
    assert [event["details"] for event in events[:-1]] == [None] * (len(events) - 1)
    if details:
        ended = {**events[-1]["details"]}
        assert ended.pop("input_length") == 7
        assert ended == {key: answer["details"][key] for key in ("finish_reason", "generated_tokens", "seed")}
    else:
        assert events[-1]["details"] is None
        assert "details" not in answer


def test_the_best_of_several_has_the_highest_mean_logprob() -> None:
    def choice(text: str, *logprobs: float) -> Choice:
        made = Choice()
        made.add(Delta(0, text, (), tuple(ShownToken(1, "a", b"a", 0, each) for each in logprobs), "stop", None))
        return made

    call = call_of(stream=False, best_of=3, do_sample=True, details=True, return_full_text=False)
    (answer,) = tgi.root_document(HEAD, call, [choice("a", -3.0), choice("b", -1.0, -1.5), choice("c", -1.4)], USAGE)
    assert answer["generated_text"] == "b"
    assert [other["generated_text"] for other in answer["details"]["best_of_sequences"]] == ["c", "a"]
    assert answer["details"]["generated_tokens"] == 2
    assert answer["details"]["seed"] is None


def test_prefill_has_the_prompt() -> None:
    choice = Choice()
    shown = (ShownToken(1, "a", b"a", 0, None), ShownToken(2, "b", b"b", 1, float("-inf")))
    choice.add(Delta(0, "x", (), (), "length", None, PromptPart(None, shown)))
    answer = tgi.document(HEAD, call_of(stream=False, details=True, decoder_input_details=True), [choice], USAGE)
    assert answer["details"]["prefill"] == [
        {"id": 1, "text": "a", "logprob": None},
        {"id": 2, "text": "b", "logprob": -9999.0},
    ]
    json.dumps(answer, allow_nan=False)


def test_headers_say_where_the_time_went() -> None:
    headers = {key.decode(): value.decode() for key, value in tgi.answer_headers(call_of(), USAGE)}
    assert headers == {
        "x-compute-type": "cpu",
        "x-compute-time": "0.133000",
        "x-compute-characters": "2",
        "x-total-time": "133",
        "x-validation-time": "1",
        "x-queue-time": "2",
        "x-inference-time": "130",
        "x-time-per-token": "26",
        "x-prompt-tokens": "7",
        "x-generated-tokens": "5",
    }


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("x"), 422, "validation"),
        (Unsupported("x"), 422, "validation"),
        (Unauthorized("x"), 401, "request"),
        (ModelNotFound("x"), 404, "request"),
        (QueueFull("x"), 429, "overloaded"),
        (EngineError("x"), 424, "generation"),
        (EngineDead("x"), 503, "generation"),
        (HeadraceError("x"), 500, "generation"),
        (ValueError("/secret"), 424, "generation"),
    ],
)
def test_errors(error: Exception, status: int, kind: str) -> None:
    body = tgi.ERRORS.body(error)
    assert (tgi.ERRORS.status(error), body["error_type"]) == (status, kind)
    assert "secret" not in body["error"]
    assert json.loads(tgi.ERRORS.event(error)[5:]) == body
