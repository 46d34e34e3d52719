"""The real model, held to schemas: every answer that ended by itself is valid; EOS, lengths and streams stay honest."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.e2e.server import PATIENCE, ServerProcess
from tests.grammar.suite import problem, read_suite

MODEL = "smollm2-135m-instruct"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "Describe a person from Paris as JSON."}]
HELD = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}


def test_a_sample_of_the_suite_is_valid(idle_server: ServerProcess) -> None:
    """`python -m benchmarks.constrained suite` asks for all of it."""
    schemas = [schema for schema in read_suite() if not schema.unsupported][::4]

    async def ask(client: httpx.AsyncClient, schema: Any, temperature: float) -> tuple[str, str | None]:
        body = {
            "messages": [{"role": "user", "content": f"Write JSON for this schema: {json.dumps(schema)}"}],
            "max_tokens": 64,
            "temperature": temperature,
            "seed": 11,
            "response_format": {"type": "json_object", "value": schema},
        }
        answer = await client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        text = choice["message"]["content"]
        return choice["finish_reason"], problem(schema, text) if choice["finish_reason"] == "stop" else None

    async def everyone() -> list[tuple[str, str | None]]:
        async with httpx.AsyncClient(base_url=idle_server.url, timeout=240) as client:
            asked = (ask(client, schema.schema, temperature) for schema in schemas for temperature in (0.0, 1.0))
            return await asyncio.gather(*asked)

    answers = asyncio.run(everyone())
    assert [fault for _, fault in answers if fault] == []
    ended = sum(finish == "stop" for finish, _ in answers)
    assert ended > len(answers) // 4
    assert {finish for finish, _ in answers} <= {"stop", "length"}


def test_the_openai_client(idle_server: ServerProcess) -> None:
    """1000 tokens hold any such person, every character escaped and all the white space that may be there."""
    client = OpenAI(base_url=f"{idle_server.url}/v1", api_key="none")
    asked: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "temperature": 0, "response_format": HELD}
    whole = client.chat.completions.create(**asked, max_tokens=1000)
    text = whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    assert problem(PERSON, text or "") is None
    stream = client.chat.completions.create(**asked, max_tokens=1000, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == text
    cut = client.chat.completions.create(**asked, max_tokens=4)
    assert cut.choices[0].finish_reason == "length", "an answer that was cut says so"
    several = client.chat.completions.create(
        **{**asked, "temperature": 1.0}, n=4, seed=5, max_tokens=1000, logprobs=True
    )
    assert [problem(PERSON, choice.message.content or "") for choice in several.choices] == [None] * 4
    for choice in several.choices:
        assert choice.logprobs is not None
        assert all(token.logprob > -1000 for token in choice.logprobs.content or ())


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({"guided_choice": ["red", "green", "blue"]}, {"red", "green", "blue"}),
        ({"guided_regex": "(yes|no)!{2}"}, {"yes!!", "no!!"}),
        ({"structured_outputs": {"grammar": 'root ::= "left" | "right"'}}, {"left", "right"}),
        ({"structured_outputs": {"grammar": 'start: "up" | "down"'}}, {"up", "down"}),
    ],
)
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 2, "top_k": 3}, {"repetition_penalty": 1.5}])
def test_other_kinds_with_any_sampling(
    idle_server: ServerProcess, held: dict[str, Any], expected: set[str], sampling: dict[str, Any]
) -> None:
    body = {"prompt": "Which one?", "max_tokens": 20, "seed": 1, **held, **sampling}
    choice = httpx.post(f"{idle_server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]
    assert choice["text"] in expected
    assert choice["finish_reason"] == "stop"


def test_a_bad_schema_names_its_keyword(idle_server: ServerProcess) -> None:
    held = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    body = {"messages": QUESTION, "response_format": held}
    answer = httpx.post(f"{idle_server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "uniqueItems" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "response_format"


def test_a_watermark_is_found_in_what_the_server_writes(idle_server: ServerProcess) -> None:
    from headrace.watermark import PUBLIC, judge

    def z(**more: Any) -> float:
        parameters = {"max_new_tokens": 150, "do_sample": True, "temperature": 1.0, "seed": 3, "details": True, **more}
        body = {"inputs": "Once upon a time, in a village by the river,", "parameters": parameters}
        answer = httpx.post(f"{idle_server.url}/generate", json=body, timeout=120).json()
        return judge(PUBLIC, [token["id"] for token in answer["details"]["tokens"]]).z

    assert z(watermark=True) > 4
    assert z() < 3


def test_a_grammar_that_fails_on_the_way_ends_its_request_alone(idle_server: ServerProcess) -> None:
    """Every further letter can be read in more ways than the last, until one step is too large."""

    def failures() -> float:
        lines = httpx.get(f"{idle_server.url}/metrics", timeout=PATIENCE).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("headrace:unsatisfied_total{"))

    before = failures()
    body = {"prompt": "aaaa", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    other = httpx.Client(base_url=idle_server.url, timeout=120)
    held = {**body, "structured_outputs": {"grammar": 's: s s | s s s | "a" | "b"\nstart: s'}}
    answer = other.post("/v1/completions", json=held)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "structured_outputs"), answer.text
    assert "grammar" in error["message"]
    lines = [line for line in other.post("/v1/completions", json={**held, "stream": True}).text.splitlines() if line]
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == 400
    none = other.post(
        "/v1/completions", json={**body, "structured_outputs": {"regex": "[0-9]+"}, "bad_words": list("0123456789")}
    )
    assert none.status_code == 400, none.text
    assert failures() == before + 3
    assert other.post("/v1/completions", json={"prompt": "a", "max_tokens": 4}).status_code == 200
