"""Ollama's bodies and answers: every option honoured or refused, and a stream that adds up to the answer."""

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.errors import InvalidRequest, ModelNotFound, QueueFull, Unsupported
from headrace.wire import ollama
from headrace.wire.calls import Call, Conversation, Prompts
from headrace.wire.deltas import Delta, Head, PromptPart, ShownToken, Timing, ToolCallDelta, Usage
from headrace.wire.fold import Choice
from headrace.wire.limits import Limits
from headrace.wire.ollama_requests import asked_model, keep_alive, parse_chat, parse_generate

LIMITS = Limits(max_model_len=512, vocab_size=1000)
HEAD = Head("gen-1", 1, "tiny", "f")
USAGE = Usage(7, 5, 0, timing=Timing(0.001, 0.002, 0.03, 0.1, 0.0005))


def generate(**body: Any) -> Call:
    return parse_generate({"model": "m", "prompt": "hi", **body}, LIMITS, {})


def chat(**body: Any) -> Call:
    return parse_chat({"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}, LIMITS, {})


def test_defaults_are_ollamas_and_streaming_is_one() -> None:
    sampling = generate().sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.8, 40, 0.9, 0.0)
    assert (sampling.repetition_penalty, sampling.penalty_window, sampling.seed) == (1.0, 64, None)
    assert generate().style.stream
    assert chat().style.stream
    assert not chat(stream=False).style.stream
    assert generate().max_tokens is None
    own = parse_generate({"model": "m", "prompt": "x"}, LIMITS, {"temperature": 0.6, "top_k": 20})
    assert (own.sampling.temperature, own.sampling.top_k, own.sampling.top_p) == (0.6, 20, 0.9)


def test_options_arrive() -> None:
    given_options = {
        "num_predict": 9, "num_ctx": 128, "seed": 3, "stop": ["a"], "temperature": 0, "top_k": 5, "top_p": 0.5,
        "min_p": 0.1, "repeat_last_n": 8, "repeat_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "num_keep": 4, "num_batch": 512, "num_gpu": 0, "num_thread": 2, "use_mmap": True, "typical_p": 1.0,
        "mirostat": 0, "tfs_z": 1,
    }  # fmt: skip
    call = generate(options=given_options)
    sampling = call.sampling
    assert (call.max_tokens, call.context, call.open_ended) == (9, 128, True)
    assert (sampling.seed, sampling.stop, sampling.temperature, sampling.top_k) == (3, ("a",), 0.0, 5)
    assert (sampling.top_p, sampling.min_p, sampling.penalty_window) == (0.5, 0.1, 8)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.2, 0.5, 0.25)
    for endless in (-1, -2, 0):
        assert generate(options={"num_predict": endless}).max_tokens is None
    assert generate(options={"seed": -1}).sampling.seed is None
    assert generate(options={"repeat_last_n": -1, "repeat_penalty": 2}).sampling.penalty_window == 0
    off = generate(options={"repeat_last_n": 0, "repeat_penalty": 2, "presence_penalty": 1}).sampling
    assert (off.repetition_penalty, off.presence_penalty) == (1.0, 0.0)


DEEP = json.loads('{"a":' * 100 + "1" + "}" * 100)


def called(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"model": None}, "model is required"),
        ({"prompt": 3}, "prompt must be a string"),
        ({"suffix": "x"}, "suffix is not supported"),
        ({"template": "x"}, "template is not supported"),
        ({"images": ["aGk="]}, "images is not supported"),
        ({"width": 64}, "width is not supported"),
        ({"raw": True, "system": "x"}, "raw does without"),
        ({"truncate": True}, "truncate is not supported"),
        ({"shift": True}, "shift is not supported"),
        ({"think": "hard"}, "think must be"),
        ({"format": "xml"}, "format must be"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"context": [1000]}, "context must hold token ids"),
        ({"nonsense": 1}, "unknown field 'nonsense'"),
        ({"options": {"num_ctx": 1024}}, "served with a context of 512"),
        ({"options": {"typical_p": 0.5}}, "options.typical_p is not supported"),
        ({"options": {"mirostat": 2}}, "options.mirostat is not supported"),
        ({"options": {"tfs_z": 0.5}}, "options.tfs_z is not supported"),
        ({"options": {"penalize_newline": False}}, "options.penalize_newline"),
        ({"options": {"num_thread": "2"}}, "options.num_thread has the wrong type"),
        ({"options": {"temprature": 1}}, "temprature"),
        ({"options": {"temperature": "hot"}}, "options.temperature must be a number"),
    ],
)
def test_refusals_name_the_field(body: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidRequest, Unsupported), match=match):
        generate(**body)


def test_generate_is_a_conversation_unless_raw() -> None:
    content = generate(system="be brief", context=[1, 2], think=True).content
    assert isinstance(content, Conversation)
    assert content.messages == ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"})
    assert (content.before, content.thinking, content.plain_without_template) == ((1, 2), True, True)
    assert generate().style.return_token_ids
    raw = generate(raw=True)
    assert raw.content == Prompts(("hi",))
    assert not raw.style.return_token_ids


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, r"tools\[0\].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "x": 1}}]}, r"tools\[0\].function .*'x'"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "same name"),
        ({"tools": [{"type": "browser", "function": {"name": "f"}}]}, r"tools\[0\].type"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]}, "nested"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": "\ud800"}}}]}, "surrogate"),
        ({"messages": [called({"x": DEEP})]}, "nested"),
        ({"messages": [called({"x": "\ud800"})]}, "surrogate"),
        ({"messages": [called([])]}, "arguments must be a JSON object"),
    ],
)
def test_tools_are_checked_as_in_every_dialect(body: dict[str, Any], field: str) -> None:
    with pytest.raises((InvalidRequest, Unsupported), match=field):
        chat(**body)


def test_chat_with_tools_and_their_answers() -> None:
    weather = {
        "type": "function",
        "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}},
    }
    call = parse_chat(
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "hi", "images": []},
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "hm",
                    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}],
                },
                {"role": "tool", "content": "sunny", "tool_name": "weather"},
            ],
            "tools": [weather],
            "think": "low",
            "format": {"type": "object"},
        },
        LIMITS,
        {},
    )
    content = call.content
    assert isinstance(content, Conversation)
    (tool,) = content.tools
    assert (tool.name, tool.description, tool.parameters) == ("weather", "d", {"type": "object"})
    assert (content.thinking, content.effort) == (True, "low")
    function = {"name": "weather", "arguments": {"city": "Rome"}}
    assert content.messages[1]["tool_calls"] == [{"id": "call_0", "type": "function", "function": function}]
    assert content.messages[1]["reasoning_content"] == "hm"
    assert content.messages[2] == {"role": "tool", "content": "sunny", "tool_call_id": "", "name": "weather"}
    assert call.constraint is not None
    assert call.constraint.kind == "json_schema"
    with pytest.raises(Unsupported, match=r"messages\[0\].images"):
        chat(messages=[{"role": "user", "content": "x", "images": ["aGk="]}])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), (0, 0.0), (-1, -1.0), (90, 90.0), (1.5, 1.5), ("5m", 300.0), ("1h30m", 5400.0), ("-1", -1.0),
     ("0", 0.0), ("250ms", 0.25), ("-1m", -60.0)],
)  # fmt: skip
def test_keep_alive(value: object, seconds: float | None) -> None:
    assert keep_alive({"keep_alive": value}) == seconds


@pytest.mark.parametrize(
    "value", ["", "soon", "5", "m5", "5 m", True, [], "9" * 100, 1e300, "1000000000", "999999999999h"]
)
def test_bad_keep_alive(value: object) -> None:
    if value == "5":
        assert keep_alive({"keep_alive": value}) == 5.0
        return
    with pytest.raises(InvalidRequest, match="keep_alive must be"):
        keep_alive({"keep_alive": value})


def test_older_clients_say_name() -> None:
    assert asked_model({"name": "m"}) == "m"
    with pytest.raises(InvalidRequest, match="model is required"):
        asked_model({"model": ""})


TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
SHOWN = st.builds(lambda text: ShownToken(1, text, text.encode(), 0, -0.5), TEXT)
ARGUMENTS = st.dictionaries(TEXT, st.integers() | TEXT, max_size=3).map(json.dumps) | st.sampled_from(
    ["", '{"a": ', "3"]
)


@st.composite
def answers(draw: st.DrawFn, *, calls: bool) -> list[Delta]:
    """One choice's deltas: reasoning, then text, then calls in fragments; ids throughout."""
    deltas = [Delta(0, reasoning=text) for text in draw(st.lists(TEXT, max_size=3))]
    deltas += [
        Delta(0, text, tuple(draw(st.lists(st.integers(0, 9), max_size=2))), tuple(draw(st.lists(SHOWN, max_size=1))))
        for text in draw(st.lists(TEXT, max_size=4))
    ]
    for index in range(draw(st.integers(0, 3)) if calls else 0):
        arguments = draw(ARGUMENTS)
        cut = draw(st.integers(0, len(arguments)))
        deltas.append(Delta(0, tool_calls=(ToolCallDelta(index, f"c{index}", "f", arguments[:cut]),)))
        deltas.append(Delta(0, tool_calls=(ToolCallDelta(index, arguments=arguments[cut:]),)))
    deltas.append(Delta(0, draw(TEXT), (5,), (), draw(st.sampled_from(["stop", "length", "tool_calls"]))))
    deltas[0] = replace(deltas[0], prompt=PromptPart((1, 2), None))
    return deltas


def lines_of(stream: bytes) -> list[Any]:
    """The stream as a client sees it: it reads every line as JSON, so none may be empty."""
    assert stream.endswith(b"\n")
    lines = [json.loads(line) for line in stream.decode().split("\n")[:-1]]
    for line in lines:
        assert line["model"] == "m"
        datetime.fromisoformat(line["created_at"])
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines


@settings(max_examples=200, deadline=None, derandomize=True)
@given(answers(calls=False))
def test_a_generate_stream_adds_up_to_the_answer(deltas: list[Delta]) -> None:
    call = generate()
    writer = ollama.GENERATE.writer(HEAD, call)
    lines = lines_of(b"".join([writer.delta(delta, USAGE) for delta in deltas]) + writer.end(USAGE))
    choice = Choice()
    for delta in deltas:
        choice.add(delta)
    document = ollama.generate_document(HEAD, call, [choice], USAGE)
    assert "".join(line["response"] for line in lines) == document["response"]
    assert "".join(line.get("thinking", "") for line in lines) == document.get("thinking", "")
    assert [t for line in lines for t in line.get("logprobs", [])] == document.get("logprobs", [])
    last = {key: value for key, value in lines[-1].items() if key not in ("created_at", "response")}
    assert last == {key: document[key] for key in last}
    assert document["context"] == [1, 2, *choice.token_ids]
    assert document["total_duration"] == 133_000_000
    assert document["load_duration"] == 500_000
    assert (document["prompt_eval_count"], document["eval_count"]) == (7, 5)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(answers(calls=True))
def test_a_chat_stream_adds_up_to_the_answer(deltas: list[Delta]) -> None:
    call = chat()
    writer = ollama.CHAT.writer(HEAD, call)
    lines = lines_of(b"".join([writer.delta(delta, USAGE) for delta in deltas]) + writer.end(USAGE))
    choice = Choice()
    for delta in deltas:
        choice.add(delta)
    document = ollama.chat_document(HEAD, call, [choice], USAGE)
    messages = [line["message"] for line in lines]
    assert all(message["role"] == "assistant" for message in messages)
    whole = document["message"]
    assert "".join(message.get("thinking", "") for message in messages) == whole.get("thinking", "")
    assert [c for message in messages for c in message.get("tool_calls", [])] == whole.get("tool_calls", [])
    assert all(isinstance(c["function"]["arguments"], dict) for c in whole.get("tool_calls", []))
    assert sorted("".join(message["content"] for message in messages)) == sorted(whole["content"])
    assert lines[-1]["done_reason"] == document["done_reason"]
    assert "context" not in document


def test_errors() -> None:
    assert ollama.ERRORS.body(ModelNotFound("x", "model", "nope")) == {"error": "model 'nope' not found"}
    assert ollama.ERRORS.body(ValueError("/secret")) != {"error": "/secret"}
    assert ollama.ERRORS.status(QueueFull("full")) == 503
    assert ollama.ERRORS.event(InvalidRequest("x")) == b'{"error":"x"}\n'
