"""Tools and reasoning through the real `openai` client; the engine says what a script tells it to."""

import json
from typing import Any

import openai
import pytest

from tests.api.conftest import Running, Start
from tests.api.fakes import FakeEngine, says, served
from tests.api.formats import FormatWords

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Münster", "days": [1, 2]}}\n</tool_call>'
THOUGHT = "<think>\nThe wheel 🛞 needs weather.\n</think>\n\n"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "noop"}},
]
MESSAGES = [{"role": "user", "content": "How is Münster?"}]


def serve(start: Start, text: str, template: str = "QWEN3", **engine: Any) -> Running:
    words = FormatWords(template)
    limits = served().limits.__class__(max_model_len=4096, vocab_size=257)
    return start(FakeEngine(pace=0.0002, script=says(text), **engine), words=words, limits=limits)


def client_of(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0, timeout=60)


def ask(server: Running, **body: Any) -> Any:
    return client_of(server).chat.completions.create(**{"model": "tiny", "messages": MESSAGES, "tools": TOOLS, **body})


@pytest.mark.parametrize("per_step", [1, 3, 1000])
def test_streamed_and_whole_answers_agree(start: Start, per_step: int) -> None:
    server = serve(start, THOUGHT + "Let me see.\n" + CALL + "\n" + CALL, per_step=per_step)
    whole = ask(server).choices[0]
    with client_of(server).chat.completions.stream(model="tiny", messages=MESSAGES, tools=TOOLS) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        assert choice.message.reasoning_content == choice.message.reasoning == "The wheel 🛞 needs weather."
        assert [call.function.name for call in choice.message.tool_calls] == ["weather", "weather"]
        assert len({call.id for call in choice.message.tool_calls}) == 2
        for call in choice.message.tool_calls:
            assert call.type == "function"
            assert json.loads(call.function.arguments) == {"city": "Münster", "days": [1, 2]}


def test_the_chunks_of_a_call(start: Start) -> None:
    """Id, type and name in the first fragment only, an index in every one, arguments as they are written."""
    chunks = list(ask(serve(start, CALL), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.model_dump(exclude_unset=True) == {"role": "assistant", "content": ""}
    fragments = [f for c in chunks if c.choices for f in c.choices[0].delta.tool_calls or []]
    first, *others = [f.model_dump(exclude_unset=True) for f in fragments]
    assert first.pop("id").startswith("call_")
    assert first == {
        "index": 0, "type": "function", "function": {"name": "weather", "arguments": "{"},
    }  # fmt: skip
    assert len(others) > 10
    assert all(set(other) == {"index", "function"} and set(other["function"]) == {"arguments"} for other in others)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
    assert all(not c.choices[0].delta.content for c in chunks if c.choices)
    assert chunks[-1].usage.completion_tokens == len(CALL.encode()) + 1


def test_an_answer_that_is_cut_off_says_length(start: Start) -> None:
    server = serve(start, CALL)
    choice = ask(server, max_tokens=len('<tool_call>\n{"name": "weather", "arguments": {"city": ')).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"city": '


def test_without_tools_or_with_none_nothing_is_read_as_a_call(start: Start) -> None:
    server = serve(start, CALL)
    for body in ({"tools": openai.NOT_GIVEN}, {"tool_choice": "none"}):
        choice = ask(server, **body).choices[0]
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")


def test_one_call_at_most(start: Start) -> None:
    choice = ask(serve(start, CALL + CALL), parallel_tool_calls=False).choices[0]
    assert len(choice.message.tool_calls) == 1
    assert choice.finish_reason == "tool_calls"


def test_a_call_of_what_was_not_offered_is_text(start: Start) -> None:
    text = CALL.replace("weather", "rm -rf")
    choice = ask(serve(start, text)).choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")


def test_reasoning_is_counted_and_can_be_left_out(start: Start) -> None:
    server = serve(start, THOUGHT + "Fine.")
    answer = ask(server, tools=openai.NOT_GIVEN)
    assert answer.choices[0].message.content == "Fine."
    assert answer.usage.completion_tokens_details.reasoning_tokens == len(THOUGHT.strip().encode()) - len("<think")
    hidden = ask(server, tools=openai.NOT_GIVEN, extra_body={"include_reasoning": False})
    assert hidden.choices[0].message.content == "Fine."
    assert "reasoning" not in hidden.choices[0].message.model_dump(exclude_unset=True)
    assert hidden.usage.completion_tokens_details.reasoning_tokens > 0


def test_reasoning_is_switched_through_the_template(start: Start) -> None:
    server = serve(start, "Fine.")
    prompts = []
    for body in (
        {"reasoning_effort": "high"},
        {"reasoning_effort": "none"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    ):
        ask(server, **body)
        prompts.append(bytes(server.engine.submitted[-1].prompt).decode())
    assert not prompts[0].endswith("</think>\n\n")
    assert prompts[1].endswith("<think>\n\n</think>\n\n")
    assert prompts[1] == prompts[2]
    with pytest.raises(openai.BadRequestError, match="does not reason"):
        ask(serve(start, "Fine.", "LLAMA31"), reasoning_effort="high")


def test_a_prompt_that_opens_the_reasoning(start: Start) -> None:
    choice = ask(serve(start, "Hm.\n</think>\nFine.", "DEEPSEEK_R1")).choices[0]
    assert (choice.message.reasoning, choice.message.content) == ("Hm.", "Fine.")


def test_calls_and_results_of_the_history_reach_the_template(start: Start) -> None:
    server = serve(start, "Sunny.")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Münster"}'}}
    ask(
        server,
        messages=[
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "31 degrees"}]},
        ],
    )
    prompt = bytes(server.engine.submitted[-1].prompt).decode()
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Münster"}}\n</tool_call>' in prompt
    assert "<tool_response>\n31 degrees\n</tool_response>" in prompt
    assert '"description": "Tells the weather."' in prompt


def test_required_calls_are_constrained(start: Start) -> None:
    """The engine here writes what it likes; that it is given a grammar, and which, is what counts."""
    server = serve(start, CALL)
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        ask(server, tool_choice=choice)
        grammar = server.engine.submitted[-1].sampling.grammar
        assert grammar is not None
        matcher = grammar.matcher()
        assert all(
            matcher.advance(byte) for byte in b'x</think><tool_call>\n{"name": "weather", "arguments": {"city": "'
        ), matcher.error
    ask(server)
    assert server.engine.submitted[-1].sampling.grammar is None


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "object"),
        ({"tools": [{"type": "function", "function": {"name": "f", "colour": 1}}]}, "colour"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "same name"),
        ({"tools": [TOOLS[1]] * 200}, "128"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "other"),
        ({"tools": openai.NOT_GIVEN, "tool_choice": "required"}, "needs tools"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions"),
        ({"reasoning_effort": "immense"}, "reasoning_effort"),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [*MESSAGES, {"role": "function", "content": "x", "name": "f"}]}, "function"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}],
                    }
                ]
            },
            "arguments",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(start: Start, body: dict[str, Any], names: str) -> None:
    with pytest.raises(openai.BadRequestError, match=names):
        ask(serve(start, "x"), **body)


def test_deep_data_is_refused(start: Start) -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"properties": {"a": deep}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": deep}}}}
    with pytest.raises(openai.BadRequestError, match="nested"):
        ask(serve(start, "x"), tools=[tool])
