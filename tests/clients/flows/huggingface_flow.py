"""`huggingface_hub.InferenceClient` with a base URL: TGI's text generation and the chat."""

import json
import sys

from huggingface_hub import InferenceClient
from huggingface_hub.errors import TextGenerationError, ValidationError

url, key = sys.argv[1:3]
client = InferenceClient(url, token=key, timeout=60)

answer = client.text_generation("The capital of France is", max_new_tokens=8, details=True, return_full_text=False)
assert "Paris" in answer.generated_text and answer.details.generated_tokens == 8, answer
assert (
    client.text_generation("The capital of France is", max_new_tokens=8)
    == "The capital of France is" + answer.generated_text
)
pieces = list(client.text_generation("The capital of France is", max_new_tokens=8, stream=True))
assert "".join(pieces) == answer.generated_text, pieces
tokens = list(client.text_generation("One two three", max_new_tokens=4, stream=True, details=True))
assert (
    tokens[-1].generated_text and tokens[-1].details.finish_reason.value == "length"
    if hasattr(tokens[-1].details.finish_reason, "value")
    else tokens[-1].details.finish_reason == "length"
)

question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
chat = client.chat_completion(question, max_tokens=16, temperature=0)
assert "Paris" in chat.choices[0].message.content, chat
parts = client.chat_completion(question, max_tokens=16, temperature=0, stream=True)
assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == chat.choices[0].message.content
schema = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
held = client.chat_completion(
    question, max_tokens=400, temperature=0,
    response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
)  # fmt: skip
assert isinstance(json.loads(held.choices[0].message.content)["city"], str), held
grammar = client.text_generation(
    question[0]["content"], max_new_tokens=400, grammar={"type": "json", "value": schema}, return_full_text=False
)
assert isinstance(json.loads(grammar)["city"], str), grammar
endpoint = InferenceClient(url, provider="hf-inference", token=key)
info = endpoint.get_endpoint_info()
assert info["max_total_tokens"] > 1000, info
assert endpoint.health_check() is True

try:
    client.text_generation("x", max_new_tokens=-1)
except ValidationError as caught:
    assert "max_new_tokens" in str(caught), caught
else:
    raise AssertionError("a negative number of tokens was taken")
try:
    InferenceClient(url, token="wrong").text_generation("x", max_new_tokens=1)
except TextGenerationError as caught:
    assert "API key" in str(caught), caught
else:
    raise AssertionError("a wrong key was taken")
print("done")
