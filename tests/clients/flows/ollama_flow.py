"""The `ollama` client: generate, chat, tools, formats, embeddings, models, errors."""

import json
import sys

import ollama

url, key = sys.argv[1:3]
client = ollama.Client(host=url, headers={"Authorization": f"Bearer {key}"})
models = client.list().models
assert models and models[0].size > 1_000_000 and models[0].details.family, models
MODEL = models[0].model
QUESTION = "What is the capital of France? Answer in one word."
GREEDY = {"temperature": 0, "num_predict": 16}

shown = client.show(MODEL)
assert shown.modelinfo and "completion" in shown.capabilities, shown
assert MODEL in [each.model for each in client.ps().models]

answer = client.chat(MODEL, messages=[{"role": "user", "content": QUESTION}], options=GREEDY)
assert "Paris" in answer.message.content and answer.done and answer.done_reason in ("stop", "length"), answer
assert answer.eval_count > 0 and answer.prompt_eval_count > 0 and answer.total_duration > answer.eval_duration > 0
parts = list(client.chat(MODEL, messages=[{"role": "user", "content": QUESTION}], options=GREEDY, stream=True))
assert "".join(part.message.content for part in parts) == answer.message.content
assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]

plain = client.generate(MODEL, prompt="The sky is", raw=True, options={**GREEDY, "num_predict": 5})
streamed = list(
    client.generate(MODEL, prompt="The sky is", raw=True, options={**GREEDY, "num_predict": 5}, stream=True)
)
assert "".join(part.response for part in streamed) == plain.response and plain.eval_count == 5, plain

schema = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
held = client.chat(
    MODEL, messages=[{"role": "user", "content": QUESTION}], format=schema, options={**GREEDY, "num_predict": 400}
)
assert isinstance(json.loads(held.message.content)["city"], str), held
anything = client.generate(MODEL, prompt="Write a small JSON object.", format="json", options={"num_predict": 300})
assert anything.done_reason == "length" or json.loads(anything.response) is not None


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: The city's name.
    """
    return f"sunny in {city}"


called = client.chat(
    MODEL, messages=[{"role": "user", "content": "The weather in Paris?"}], tools=[get_weather], options=GREEDY
)
assert called.message.content or called.message.tool_calls, called
history = [
    {"role": "user", "content": "The weather in Paris?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]},
    {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
]
assert client.chat(MODEL, messages=history, tools=[get_weather], options=GREEDY).done

vectors = client.embed(MODEL, input=["a dog", "a puppy", "interest rates"]).embeddings
assert len(vectors) == 3 and abs(sum(x * x for x in vectors[0]) - 1) < 1e-3
assert client.embeddings(MODEL, prompt="a dog").embedding

for call in (
    lambda: client.chat("no-such-model", messages=[{"role": "user", "content": "hi"}]),
    lambda: client.generate("no-such-model", prompt="hi"),
    lambda: client.show("no-such-model"),
):
    try:
        call()
    except ollama.ResponseError as caught:
        assert caught.status_code == 404 and "not found" in caught.error, caught
    else:
        raise AssertionError("an unknown model answered")
try:
    client.generate(MODEL, prompt="hi", options={"temperature": -5})
except ollama.ResponseError as caught:
    assert caught.status_code == 400 and "temperature" in caught.error, caught
else:
    raise AssertionError("a wrong option was taken")
try:
    ollama.Client(host=url).list()
except ollama.ResponseError as caught:
    assert caught.status_code == 401, caught
else:
    raise AssertionError("no key was asked for")
print("done")
