"""Anthropic's bodies and answers: blocks in, blocks out, and a stream that adds up to the message."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import Draining, EngineError, InvalidRequest, ModelNotFound, QueueFull, Unauthorized, Unsupported
from headrace.wire import anthropic
from headrace.wire.anthropic_requests import parse_count, parse_messages
from headrace.wire.calls import Call, Conversation
from headrace.wire.deltas import Delta, Head, ToolCallDelta, Usage
from headrace.wire.fold import Choice
from headrace.wire.limits import Limits

LIMITS = Limits(max_model_len=512, vocab_size=1000)
HEAD = Head("msg_1", 1, "tiny", "f")
USAGE = Usage(7, 5, 2)
USER = [{"role": "user", "content": "hi"}]
WEATHER = {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}


def call_of(**body: Any) -> Call:
    return parse_messages({"model": "m", "max_tokens": 9, "messages": USER, **body}, LIMITS, {})


def conversation_of(**body: Any) -> Conversation:
    content = call_of(**body).content
    assert isinstance(content, Conversation)
    return content


def test_fields_arrive() -> None:
    call = call_of(
        system=[
            {"type": "text", "text": "be"},
            {"type": "text", "text": "brief", "cache_control": {"type": "ephemeral"}},
        ],
        stop_sequences=["END"],
        temperature=0.5,
        top_k=5,
        top_p=0.9,
        stream=True,
        thinking={"type": "enabled", "budget_tokens": 1024},
        metadata={"user_id": "u"},
        service_tier="auto",
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    )
    content = call.content
    assert isinstance(content, Conversation)
    assert content.messages == ({"role": "system", "content": "be\nbrief"}, {"role": "user", "content": "hi"})
    assert (content.thinking, content.effort, content.add_generation_prompt) == (True, "low", True)
    assert (call.sampling.stop, call.sampling.temperature, call.sampling.top_k, call.sampling.top_p) == (
        ("END",),
        0.5,
        5,
        0.9,
    )
    assert (call.max_tokens, call.open_ended, call.style.stream, call.style.include_reasoning) == (9, True, True, True)
    assert call.constraint is not None
    assert call.constraint.kind == "json_schema"
    assert call_of(max_tokens=32_000).max_tokens == 512
    assert parse_count({"model": "m", "messages": USER}, LIMITS, {}).content == conversation_of()


def test_thinking() -> None:
    assert conversation_of().thinking is None
    assert conversation_of(thinking={"type": "disabled"}).thinking is False
    assert conversation_of(thinking={"type": "adaptive"}).thinking is None
    hidden = call_of(thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"})
    assert not hidden.style.include_reasoning


def test_tools_and_their_results() -> None:
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    content = conversation_of(messages=messages, tools=[WEATHER], tool_choice={"type": "any"})
    (tool,) = content.tools
    assert (tool.name, tool.description, dict(tool.parameters)) == ("weather", "d", WEATHER["input_schema"])
    assert (content.tool_choice.mode, content.parallel_tool_calls) == ("required", True)
    function = {"name": "weather", "arguments": {"city": "Rome"}}
    assert content.messages[1:] == (
        {
            "role": "assistant",
            "content": "let me see",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "name": "weather", "content": "sunny"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
        {"role": "user", "content": "so?"},
    )
    named = conversation_of(tools=[WEATHER], tool_choice={"type": "tool", "name": "weather"})
    assert (named.tool_choice.mode, named.tool_choice.names) == ("required", ("weather",))
    single = conversation_of(tools=[WEATHER], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert not single.parallel_tool_calls


def test_a_last_message_of_the_assistants_is_gone_on_with() -> None:
    content = conversation_of(messages=[*USER, {"role": "assistant", "content": "Once"}])
    assert (content.continue_final_message, content.add_generation_prompt) == (True, False)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role must be user, assistant or system"),
        ({"messages": [{"role": "user", "content": 3}]}, "content must be a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "only text, thinking and tools",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "only text, thinking and tools"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "not a user's"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "txt": "x"}]}]}, "unknown field 'txt'"),
        ({"temperature": 1.5}, "temperature must be a number from 0 to 1"),
        ({"stop_sequences": "x"}, "stop_sequences must be a list"),
        ({"thinking": {"type": "always"}}, "thinking.type must be"),
        ({"container": "c"}, "container is not supported"),
        ({"mcp_servers": [{}]}, "mcp_servers is not supported"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "only tools of your own"),
        ({"tools": [{"name": "f"}]}, "input_schema is missing"),
        ({"tools": [WEATHER, WEATHER]}, "two have the same name"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "not among the tools"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config must have a format"),
        ({"max_completion_tokens": 3}, "unknown field 'max_completion_tokens'"),
    ],
)
def test_refusals_name_the_field(body: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidRequest, Unsupported), match=match):
        call_of(**body)


TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
ARGUMENTS = st.dictionaries(TEXT, st.integers() | TEXT, max_size=3).map(json.dumps) | st.sampled_from(["", '{"a": '])


@st.composite
def answers(draw: st.DrawFn) -> list[Delta]:
    """One choice's deltas: reasoning, then text, then calls in fragments, with text or reasoning between them."""
    deltas = [Delta(0, reasoning=text) for text in draw(st.lists(TEXT, max_size=3))]
    deltas += [Delta(0, text) for text in draw(st.lists(TEXT, max_size=4))]
    for index in range(draw(st.integers(0, 3))):
        arguments = draw(ARGUMENTS)
        cut = draw(st.integers(0, len(arguments)))
        deltas.append(Delta(0, tool_calls=(ToolCallDelta(index, f"c{index}", "f", arguments[:cut]),)))
        deltas.append(Delta(0, tool_calls=(ToolCallDelta(index, arguments=arguments[cut:]),)))
        deltas += [Delta(0, text) for text in draw(st.lists(TEXT, max_size=1))]
        deltas += [Delta(0, reasoning=text) for text in draw(st.lists(TEXT, max_size=1))]
    reason = draw(st.none() | st.just("END"))
    finish = draw(st.sampled_from(["stop", "length", "tool_calls"]))
    deltas.append(Delta(0, finish=finish, stop_reason=reason if finish == "stop" else None))
    return deltas


def events_of(stream: bytes) -> list[Any]:
    """The stream as a client sees it: an event's name is its data's type."""
    blocks = stream.decode().split("\n\n")
    assert blocks[-1] == ""
    events = []
    for block in blocks[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def message_of(events: list[Any]) -> Any:
    """What Anthropic's client makes of the events, in its order and with its checks."""
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
    message = events[0]["message"]
    open_block: Any = None
    for event in events[1:-1]:
        if event["type"] == "content_block_start":
            assert open_block is None
            assert event["index"] == len(message["content"])
            open_block = {**event["content_block"], "json": ""}
            message["content"].append(open_block)
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(message["content"]) - 1
            kind, delta = event["delta"]["type"], event["delta"]
            if kind == "input_json_delta":
                open_block["json"] += delta["partial_json"]
            else:
                field = kind.removesuffix("_delta")
                open_block[field] += delta[field]
        elif event["type"] == "content_block_stop":
            assert event["index"] == len(message["content"]) - 1
            arguments = open_block.pop("json")
            if open_block["type"] == "tool_use" and arguments:
                try:
                    open_block["input"] = json.loads(arguments)
                except ValueError:
                    open_block["input"] = {"INVALID_JSON": arguments}
            open_block = None
        else:
            assert event["type"] == "message_delta"
            assert open_block is None
            message |= event["delta"]
            message["usage"] |= event["usage"]
    return message


@settings(max_examples=300, deadline=None, derandomize=True)
@given(answers())
def test_a_stream_adds_up_to_the_message(deltas: list[Delta]) -> None:
    call = call_of()
    writer = anthropic.EventWriter(HEAD, call)
    stream = b"".join([writer.delta(delta, USAGE) for delta in deltas]) + writer.end(USAGE)
    choice = Choice()
    for delta in deltas:
        choice.add(delta)
    assert message_of(events_of(stream)) == anthropic.document(HEAD, call, [choice], USAGE)


def test_the_beginning_tells_of_the_prompt() -> None:
    writer = anthropic.EventWriter(HEAD, call_of())
    (start,) = events_of(writer.delta(Delta(0), USAGE))
    assert start["message"]["usage"]["input_tokens"] == 5
    assert start["message"]["usage"]["cache_read_input_tokens"] == 2
    assert start["message"]["content"] == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (Unauthorized("x"), "authentication_error"),
        (ModelNotFound("x"), "not_found_error"),
        (QueueFull("x"), "rate_limit_error"),
        (Draining("x"), "overloaded_error"),
        (EngineError("x"), "api_error"),
        (ValueError("/secret"), "api_error"),
    ],
)
def test_errors(error: Exception, kind: str) -> None:
    body = anthropic.ERRORS.body(error)
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert "secret" not in body["error"]["message"]
    assert events_of(anthropic.ERRORS.event(error)) == [body]
