"""`langchain-openai`: chat, streams, structured output, tools, embeddings."""

import sys
from typing import Annotated

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

url, key = sys.argv[1:3]
QUESTION = "What is the capital of France? Answer in one word."
Name = Annotated[str, Field(max_length=20)]  # 400 tokens hold all that it allows
model = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model="tgi", temperature=0, max_tokens=400, max_retries=0)

answer = model.invoke(QUESTION)
assert "Paris" in answer.content and answer.usage_metadata["output_tokens"] > 0, answer
assert "".join(part.content for part in model.stream(QUESTION)) == answer.content


class City(BaseModel):
    """A city."""

    name: Name


for method in ("json_schema", "function_calling"):
    city = model.with_structured_output(City, method=method).invoke(QUESTION)
    assert isinstance(city, City) and city.name, (method, city)


@tool
def get_weather(city: Name) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


called = model.bind_tools([get_weather], tool_choice="get_weather").invoke("What is the weather in Paris?")
assert called.tool_calls[0]["name"] == "get_weather" and called.tool_calls[0]["args"]["city"], called
parts = None
for part in model.bind_tools([get_weather], tool_choice="any").stream("What is the weather in Paris?"):
    parts = part if parts is None else parts + part
assert parts is not None and parts.tool_calls == [{**called.tool_calls[0], "id": parts.tool_calls[0]["id"]}], (
    parts,
    called,
)

batch = model.batch([QUESTION, "Say hi."])
assert batch[0].content == answer.content, batch
# With the check it would ask the network for OpenAI's own vocabulary.
vectors = OpenAIEmbeddings(
    base_url=f"{url}/v1", api_key=key, model="tgi", check_embedding_ctx_length=False
).embed_documents(["a dog", "interest rates"])
assert len(vectors) == 2 and abs(sum(x * x for x in vectors[0]) - 1) < 1e-3
responses = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model="tgi", temperature=0, use_responses_api=True)
assert "Paris" in responses.invoke(QUESTION).text, "the responses API says something else"
print("done")
