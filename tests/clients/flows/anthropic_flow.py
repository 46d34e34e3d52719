"""The `anthropic` client: messages, streams, tools, counting, errors."""

import sys

import anthropic

url, key = sys.argv[1:3]
client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
MODEL = "headrace"
QUESTION: list = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
WEATHER: dict = {  # bounded: 400 tokens hold every call that it allows
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
        "additionalProperties": False,
    },
}  # fmt: skip

MODEL = client.models.list().data[0].id
answer = client.messages.create(model=MODEL, max_tokens=16, extra_body={"temperature": 0}, messages=QUESTION)
assert answer.role == "assistant", answer
assert "Paris" in answer.content[0].text, answer  # a small model: no system prompt beside the question
assert answer.stop_reason in ("end_turn", "max_tokens"), answer
assert answer.usage.input_tokens > 10 and answer.usage.output_tokens > 0, answer.usage

blocks = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
with client.messages.stream(
    model=MODEL,
    max_tokens=16,
    extra_body={"temperature": 0},
    messages=blocks,
    system=[],
) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == answer.content[0].text == final.content[0].text, (text, answer)
assert final.usage.output_tokens == answer.usage.output_tokens, final.usage

cut = client.messages.create(
    model=MODEL,
    max_tokens=64,
    extra_body={"temperature": 0},
    stop_sequences=["5"],
    messages=[{"role": "user", "content": "Count: 1 2 3 4 5 6"}],
)
assert cut.stop_reason in ("stop_sequence", "end_turn", "max_tokens"), cut

count = client.messages.count_tokens(model=MODEL, messages=QUESTION)
assert count.input_tokens == answer.usage.input_tokens, (count, answer.usage)

forced = client.messages.create(
    model=MODEL, max_tokens=400, extra_body={"temperature": 0}, tools=[WEATHER], tool_choice={"type": "any"},
    messages=[{"role": "user", "content": "What is the weather in Paris?"}],
)  # fmt: skip
used = [block for block in forced.content if block.type == "tool_use"]
assert forced.stop_reason == "tool_use" and used, forced
assert used[0].name == "get_weather" and isinstance(used[0].input["city"], str), used
with client.messages.stream(
    model=MODEL, max_tokens=400, extra_body={"temperature": 0}, tools=[WEATHER],
    tool_choice={"type": "tool", "name": "get_weather"},
    messages=[{"role": "user", "content": "What is the weather in Paris?"}],
) as stream:  # fmt: skip
    streamed = stream.get_final_message()
assert [block.input for block in streamed.content if block.type == "tool_use"] == [used[0].input], (streamed, used)
history = [
    {"role": "user", "content": "What is the weather in Paris?"},
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": used[0].id, "name": used[0].name, "input": used[0].input}],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": used[0].id, "content": "Sunny, 22 degrees"}]},
]
told = client.messages.create(
    model=MODEL, max_tokens=40, extra_body={"temperature": 0}, tools=[WEATHER], messages=history
)
assert told.content, told

for wrong, error in (
    ({"model": "no-such-model"}, anthropic.NotFoundError),
    ({"max_tokens": 0}, anthropic.BadRequestError),
    ({"extra_body": {"temperature": 9}}, anthropic.BadRequestError),
):
    try:
        client.messages.create(**{"model": MODEL, "max_tokens": 5, "messages": QUESTION, **wrong})
    except error as caught:
        assert caught.body["type"] == "error" and caught.body["error"]["message"], caught.body
    else:
        raise AssertionError(wrong)
try:
    anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0).messages.create(
        model=MODEL, max_tokens=5, messages=QUESTION
    )
except anthropic.AuthenticationError as caught:
    assert caught.body["error"]["type"] == "authentication_error", caught.body
else:
    raise AssertionError("a wrong key was taken")
print("done")
