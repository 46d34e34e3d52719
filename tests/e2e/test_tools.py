"""Tools and `/v1/responses` with the real `openai` client, the real server process and the default model.

The default model has not learned to call tools by itself: what is proven here are calls that must be made. Every schema
is bounded, and ENOUGH holds the longest answer that it allows: which tokens a machine draws decides nothing.
"""

import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.e2e.server import ServerProcess

WEATHER = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 40},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city", "unit", "days"],
        "additionalProperties": False,
    },
}
TIME = {
    "name": "get_time",
    "description": "Get the time in a zone",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"type": "string", "pattern": "^[A-Z][a-z]{1,12}/[A-Z][a-z]{1,12}$"}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}
ENOUGH = 1000
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]
MESSAGES = [{"role": "user", "content": "What is the weather in Paris, and what time is it there?"}]


class Person(BaseModel):
    """For `.parse()`."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


class GetWeather(BaseModel):
    """For `pydantic_function_tool`."""

    city: str = Field(max_length=20)
    unit: Literal["celsius", "fahrenheit"]


@pytest.fixture
def client(idle_server: ServerProcess) -> Any:
    """Untyped on purpose: bad calls are part of what is tested."""
    return openai.OpenAI(base_url=f"{idle_server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def model(client: Any) -> str:
    return str(client.models.list().data[0].id)


def check(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert set(arguments) == {"city", "unit", "days"}
        assert arguments["unit"] in ("celsius", "fahrenheit")
        assert 1 <= arguments["days"] <= 7
    else:
        assert call.function.name == "get_time"
        assert "/" in arguments["zone"]


@pytest.mark.parametrize("seed", range(4))
def test_required_calls_are_valid(client: Any, model: str, seed: int) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=False,
        max_tokens=ENOUGH,
        temperature=1.2, seed=seed,
    )  # fmt: skip
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    check(call)


def test_the_stream_of_a_named_call_agrees_with_the_whole(client: Any, model: str) -> None:
    body = {
        "model": model, "messages": MESSAGES, "tools": TOOLS, "max_tokens": ENOUGH, "temperature": 0.9, "seed": 5,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}}, "parallel_tool_calls": False,
    }  # fmt: skip
    whole = client.chat.completions.create(**body).choices[0]
    with client.chat.completions.stream(**body) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    for choice in (whole, streamed):
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather"
        check(call)
    assert whole.message.tool_calls[0].function.arguments == streamed.message.tool_calls[0].function.arguments
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"


def test_a_call_and_its_result_go_back(client: Any, model: str) -> None:
    first = client.chat.completions.create(
        model=model, messages=MESSAGES, tools=TOOLS, tool_choice="required", max_tokens=ENOUGH, temperature=0,
        parallel_tool_calls=False,
    )  # fmt: skip
    message = first.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "sunny"}'} for call in message.tool_calls
    ]
    second = client.chat.completions.create(
        model=model, messages=[*MESSAGES, message, *results], tools=TOOLS, max_tokens=40, temperature=0
    )
    assert second.choices[0].message.content or second.choices[0].message.tool_calls
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_strict_tools_leave_prose_alone(client: Any, model: str) -> None:
    strict = [{"type": "function", "function": {**WEATHER, "strict": True}}]
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello! Who are you?"}], tools=strict, max_tokens=30,
        temperature=0,
    )  # fmt: skip
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_parsed_answers_and_tools(client: Any, model: str) -> None:
    """`.parse()`: strict schemas from pydantic models, of the answer and of a tool."""
    answer = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "Ada is 36. As JSON."}], response_format=Person,
        max_tokens=ENOUGH, temperature=0,
    )  # fmt: skip
    assert isinstance(answer.choices[0].message.parsed, Person)
    called = client.chat.completions.parse(
        model=model, messages=MESSAGES, tools=[openai.pydantic_function_tool(GetWeather)], tool_choice="required",
        parallel_tool_calls=False, max_tokens=ENOUGH, temperature=0,
    )  # fmt: skip
    (call,) = called.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_a_model_that_does_not_reason_says_so(client: Any, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="does not reason"):
        client.chat.completions.create(model=model, messages=MESSAGES, reasoning_effort="high")


def test_responses_with_a_required_call_and_its_result(client: Any, model: str) -> None:
    tools = [{"type": "function", **WEATHER, "strict": True}]
    with client.responses.stream(
        model=model, input="What is the weather in Paris?", tools=tools, tool_choice="required",
        parallel_tool_calls=False, max_output_tokens=ENOUGH, temperature=0,
    ) as stream:  # fmt: skip
        kinds = {event.type for event in stream}
        first = stream.get_final_response()
    assert {"response.created", "response.function_call_arguments.delta", "response.completed"} <= kinds
    (call,) = first.output
    assert set(json.loads(call.arguments)) == {"city", "unit", "days"}
    second = client.responses.create(
        model=model, previous_response_id=first.id, tools=tools, tool_choice="none", temperature=0,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}], max_output_tokens=40,
        extra_body={"min_tokens": 4},
    )  # fmt: skip
    assert second.output_text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)


def test_responses_are_parsed(client: Any, model: str) -> None:
    answer = client.responses.parse(
        model=model, input="Ada is 36. As JSON.", text_format=Person, max_output_tokens=ENOUGH, temperature=0
    )
    assert isinstance(answer.output_parsed, Person)


def test_a_response_in_the_background(client: Any, model: str) -> None:
    begun = client.responses.create(
        model=model, input="Count to a thousand.", background=True, max_output_tokens=4000,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert begun.status == "in_progress"
    assert client.responses.cancel(begun.id).status == "cancelled"


def test_the_list_of_models_says_how_tools_are_taken(client: Any, model: str) -> None:
    assert client.models.retrieve(model).chat_format == {
        "tool_calls": "smollm2",
        "tools": "system_prompt",
        "reasoning": False,
    }
