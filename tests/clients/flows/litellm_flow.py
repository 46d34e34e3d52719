"""`litellm`, through each dialect that it knows of ours."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks the network for a price list otherwise
import litellm

litellm.suppress_debug_info = True
litellm.num_retries = 0
url, key = sys.argv[1:3]
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
SCHEMA = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
WAYS = {
    "openai/tgi": {"api_base": f"{url}/v1"},
    "hosted_vllm/tgi": {"api_base": f"{url}/v1"},
    "anthropic/tgi": {"api_base": url},
    "ollama_chat/tgi": {"api_base": url},
}
answers = set()
for model, way in WAYS.items():
    settings = {"model": model, "api_key": key, "temperature": 0, "max_tokens": 16, "messages": QUESTION, **way}
    answer = litellm.completion(**settings)
    text = answer.choices[0].message.content
    assert "Paris" in text and answer.usage.completion_tokens > 0, (model, answer)
    parts = litellm.completion(**settings, stream=True)
    streamed = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert streamed == text, (model, streamed, text)
    answers.add(text)
assert len(answers) == 1, answers

held = litellm.completion(
    model="openai/tgi", api_base=f"{url}/v1", api_key=key, messages=QUESTION, max_tokens=400, temperature=0,
    response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}},
)  # fmt: skip
assert isinstance(json.loads(held.choices[0].message.content)["city"], str), held
vectors = litellm.embedding(model="openai/tgi", api_base=f"{url}/v1", api_key=key, input=["a dog", "interest rates"])
assert len(vectors.data) == 2, vectors
try:
    litellm.completion(model="openai/no-such-model", api_base=f"{url}/v1", api_key=key, messages=QUESTION)
except litellm.NotFoundError:
    pass
else:
    raise AssertionError("an unknown model answered")
print("done")
