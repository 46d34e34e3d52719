"""`/v1/responses` through the real `openai` client; the engine says what a script tells it to."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from headrace.api import ServerSettings
from headrace.api.stored import StoredResponses
from headrace.errors import QueueFull
from tests.api.conftest import Running, Start
from tests.api.fakes import EOS, FakeEngine, served, wait_until
from tests.api.formats import FormatWords
from tests.api.test_tools import CALL, THOUGHT

JSON = "application/json"
TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": False,
    }
]


def serve(start: Start, *texts: str, settings: ServerSettings | None = None, **engine: Any) -> Running:
    """The n-th request gets the n-th text, the last one all others."""
    limits = served().limits.__class__(max_model_len=4096, vocab_size=257)
    asked: list[str] = []

    def script(request: Any, index: int) -> list[int]:
        asked.append(request.id)
        return [*texts[min(len(asked), len(texts)) - 1].encode(), EOS]

    fake = FakeEngine(script=script, **{"pace": 0.0002, **engine})
    return start(fake, settings, words=FormatWords(), limits=limits)


def client_of(server: Running, key: str = "key") -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def prompt_of(server: Running, index: int = -1) -> str:
    return bytes(server.engine.submitted[index].prompt).decode()


def test_text_in_text_out(start: Start) -> None:
    server = serve(start, "Sunny 🛞.")
    answer = client_of(server).responses.create(
        model="tiny", input="How is it?", instructions="Be brief.", max_output_tokens=99, metadata={"a": "b"}
    )
    assert answer.output_text == "Sunny 🛞."
    assert (answer.status, answer.object, answer.id[:5]) == ("completed", "response", "resp_")
    assert (answer.instructions, answer.metadata, answer.max_output_tokens) == ("Be brief.", {"a": "b"}, 99)
    assert (answer.tools, answer.tool_choice, answer.parallel_tool_calls) == ([], "auto", True)
    assert answer.usage.output_tokens == len("Sunny 🛞.".encode()) + 1
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert prompt_of(server).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow is it?")


@pytest.mark.parametrize("per_step", [1, 7, 1000])
def test_the_stream_and_the_whole_answer_agree(start: Start, per_step: int) -> None:
    server = serve(start, THOUGHT + "Let me see.\n" + CALL + "\nSo.", per_step=per_step)
    client = client_of(server)
    whole = client.responses.create(model="tiny", input="How?", tools=TOOLS)
    with client.responses.stream(model="tiny", input="How?", tools=TOOLS) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    for answer in (whole, streamed):
        assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "message"]
        thought, before, call, after = answer.output
        assert thought.content[0].text == "The wheel 🛞 needs weather."
        assert (before.content[0].text, after.content[0].text) == ("Let me see.", "\nSo.")
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Münster", "days": [1, 2]})
        assert {item.status for item in answer.output} == {"completed"}
        assert answer.usage.output_tokens_details.reasoning_tokens > 0
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for index in range(4):
        mine = [e for e in events if getattr(e, "output_index", None) == index]
        assert mine[0].type == "response.output_item.added"
        assert mine[-1].type == "response.output_item.done"
        assert len({getattr(e, "item_id", None) or e.item.id for e in mine}) == 1
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta" and e.output_index == 1)
    assert text == "Let me see."


def test_events_have_names_and_no_done(start: Start) -> None:
    server = serve(start, "Sunny.")
    body = {"model": "tiny", "input": "How?", "stream": True}
    text = httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).text
    events = [event.split("\n") for event in text.strip().split("\n\n")]
    for name, data in events:
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert "[DONE]" not in text


def test_cut_off_is_incomplete(start: Start) -> None:
    server = serve(start, "Sunny.")
    client = client_of(server)
    answer = client.responses.create(model="tiny", input="How?", max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason, answer.output_text) == (
        "incomplete", "max_output_tokens", "Sun",
    )  # fmt: skip
    with client.responses.stream(model="tiny", input="How?", max_output_tokens=3) as stream:
        events = list(stream)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output[0].status == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "\ud800"),
        ("prompt_cache_key", "\ud800"),
        ("metadata", {"a": "\ud800"}),
        ("text", {"format": {"type": "json_schema", "name": "\ud800", "schema": {"type": "object"}}}),
        ("tool_choice", {"type": "function", "name": "weather", "more": "\ud800"}),
    ],
)
def test_what_the_answer_would_repeat_must_be_fit_to_be_written(
    start: Start, field: str, value: Any, stream: bool
) -> None:
    server = serve(start, "Sunny.")
    body = {"model": "tiny", "input": "How?", "tools": TOOLS, field: value, "stream": stream}
    answer = httpx.post(
        f"{server.url}/v1/responses", content=json.dumps(body), headers={"content-type": JSON}, timeout=60
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_an_engine_failure_in_a_stream_is_an_event(start: Start) -> None:
    server = serve(start, "Sunny." * 100, pace=0.01)
    got: list[Any] = []
    with client_of(server).responses.create(model="tiny", input="How?", stream=True) as stream:
        for event in stream:
            got.append(event)
            server.engine.error = "a NaN"
    assert got[-1].type == "response.failed"
    assert got[-1].response.error.code == "server_error"


def test_a_conversation_goes_on(start: Start) -> None:
    server = serve(start, THOUGHT + CALL, "Sunny, they say.", "Nothing.")
    client = client_of(server)
    first = client.responses.create(model="tiny", input="How is Münster?", tools=TOOLS, instructions="Be brief.")
    (call,) = [item for item in first.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "31 degrees"}
    second = client.responses.create(model="tiny", input=[result], tools=TOOLS, previous_response_id=first.id)
    assert second.output_text == "Sunny, they say."
    assert second.previous_response_id == first.id
    prompt = prompt_of(server)
    for part in ("How is Münster?", '"name": "weather", "arguments": {"city": "Münster"', "31 degrees"):
        assert part in prompt
    assert "Be brief." not in prompt, "instructions are not carried over"
    client.responses.create(model="tiny", input="And?", previous_response_id=second.id)
    assert "Sunny, they say." in prompt_of(server)
    by_hand = [{"role": "user", "content": "How is Münster?"}, *first.output, result]
    assert client.responses.create(model="tiny", input=by_hand, tools=TOOLS).status == "completed"
    items = client.responses.input_items.list(second.id).data
    assert [item.type for item in items] == ["message", "reasoning", "function_call", "function_call_output"]


def test_responses_are_looked_up_and_deleted(start: Start) -> None:
    client = client_of(serve(start, "Sunny."))
    kept = client.responses.create(model="tiny", input="How?")
    assert client.responses.retrieve(kept.id).to_dict() == kept.to_dict()
    client.responses.delete(kept.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(kept.id)
    with pytest.raises(openai.BadRequestError, match="not found"):
        client.responses.create(model="tiny", input="And?", previous_response_id=kept.id)
    unkept = client.responses.create(model="tiny", input="How?", store=False)
    assert unkept.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_one_tenant_does_not_see_anothers(start: Start) -> None:
    server = serve(start, "Sunny.", settings=ServerSettings(api_keys=("one", "two")))
    one, two = client_of(server, "one"), client_of(server, "two")
    mine = one.responses.create(model="tiny", input="A secret?")
    assert one.responses.retrieve(mine.id).id == mine.id
    for attempt in (two.responses.retrieve, two.responses.delete, two.responses.cancel, two.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            attempt(mine.id)
    with pytest.raises(openai.BadRequestError, match="not found"):
        two.responses.create(model="tiny", input="And?", previous_response_id=mine.id)
    assert one.responses.retrieve(mine.id).id == mine.id


def test_in_the_background(start: Start) -> None:
    server = serve(start, "Sunny.", pace=None)
    client = client_of(server)
    begun = client.responses.create(model="tiny", input="How?", background=True)
    assert (begun.status, begun.background, begun.output) == ("in_progress", True, [])
    assert client.responses.retrieve(begun.id).status == "in_progress"
    wait_until(lambda: bool(server.engine.running))
    while server.engine.running:
        server.engine.step()
    wait_until(lambda: client.responses.retrieve(begun.id).status == "completed")
    done = client.responses.retrieve(begun.id)
    assert done.output_text == "Sunny."
    assert client.responses.cancel(begun.id).status == "completed", "what has ended stays as it is"


def test_what_runs_in_the_background_can_be_cancelled(start: Start) -> None:
    server = serve(start, "Sunny.", pace=None)
    client = client_of(server)
    begun = client.responses.create(model="tiny", input="How?", background=True)
    wait_until(lambda: bool(server.engine.running))
    server.engine.step()
    assert client.responses.cancel(begun.id).status == "cancelled"
    wait_until(lambda: not server.engine.running)
    assert client.responses.retrieve(begun.id).status == "cancelled"
    other = client.responses.create(model="tiny", input="How?", background=True)
    wait_until(lambda: bool(server.engine.running))
    client.responses.delete(other.id)
    wait_until(lambda: not server.engine.running)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(other.id)
    wait_until(lambda: server.app.models.open == 0)


def test_what_the_engine_refuses_does_not_begin_in_the_background(start: Start) -> None:
    server = serve(start, "Sunny.", pace=None, refuse=QueueFull("the queue is full", retry_after=3))
    answer = httpx.post(
        f"{server.url}/v1/responses", json={"model": "tiny", "input": "How?", "background": True}, timeout=60
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    wait_until(lambda: server.app.models.open == 0)


def test_a_failure_in_the_background_is_told(start: Start) -> None:
    server = serve(start, "Sunny.", pace=None)
    client = client_of(server)
    begun = client.responses.create(model="tiny", input="How?", background=True)
    wait_until(lambda: bool(server.engine.running))
    server.engine.error = "a NaN"
    server.engine.step()
    wait_until(lambda: client.responses.retrieve(begun.id).status == "failed")
    assert client.responses.retrieve(begun.id).error.code == "server_error"


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"input": [{"type": "computer_call"}]}, "computer_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a"}]}]}, "input_image"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "call_id"),
        ({"include": ["reasoning.encrypted_content"]}, "reasoning.encrypted_content"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"summary": "detailed"}}, "summary"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"previous_response_id": "resp_none"}, "not found"),
        ({"background": True, "store": False}, "store"),
        ({"background": True, "stream": True}, "background"),
        ({"extra_body": {"max_tokens": 3}}, "max_tokens"),
        ({"extra_body": {"nonsense": 3}}, "nonsense"),
    ],
)
def test_what_is_wrong_is_refused_by_name(start: Start, body: dict[str, Any], names: str) -> None:
    with pytest.raises(openai.BadRequestError, match=names):
        client_of(serve(start, "x")).responses.create(**{"model": "tiny", "input": "How?", **body})


def test_the_store_has_a_limit_for_all_and_for_each() -> None:
    async def test() -> None:
        store = StoredResponses(4000)
        for number in range(50):
            assert store.put("a", {"id": f"resp_{number}", "text": "x" * 50}, [])
        assert store.total <= 1000, "one owner has a quarter"
        assert store.get("a", "resp_49") is not None
        assert store.get("a", "resp_0") is None
        assert store.get("b", "resp_49") is None
        for owner in "bcdefgh":
            for number in range(10):
                store.put(owner, {"id": f"resp_{number}", "text": "x" * 50}, [])
        assert store.total <= 4000
        assert not store.put("a", {"id": "resp_big", "text": "x" * 2000}, [])
        assert not StoredResponses(0).put("a", {"id": "resp_1"}, [])
        for owner, response_id in list(store._kept):
            store.drop(owner, response_id)
        assert (store.total, len(store), store._bytes) == (0, 0, {})

    asyncio.run(test())
