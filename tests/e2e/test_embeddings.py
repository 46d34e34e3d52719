"""Embeddings, scores and ranks of the default model, with the real `openai` client and by hand."""

import math
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.server import PATIENCE, ServerProcess

TEXTS = ["A dog runs in the park.", "A puppy is running through a garden.", "The central bank raised interest rates."]


@pytest.fixture
def client(idle_server: ServerProcess) -> Any:
    return openai.OpenAI(base_url=f"{idle_server.url}/v1", api_key="none", max_retries=0)


def embed(client: Any, texts: Any, **more: Any) -> list[list[float]]:
    answer = client.embeddings.create(model="", input=texts, **more)
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    return [each.embedding for each in answer.data]


def cosine(one: list[float], other: list[float]) -> float:
    return math.sumprod(one, other) if hasattr(math, "sumprod") else sum(a * b for a, b in zip(one, other, strict=True))


def test_near_texts_are_nearer_than_far_ones(client: Any) -> None:
    dog, puppy, bank = embed(client, TEXTS)
    assert len(dog) == 576
    assert cosine(dog, dog) == pytest.approx(1, abs=1e-5)
    assert cosine(dog, puppy) > cosine(dog, bank)


def test_neither_company_nor_form_changes_an_embedding(client: Any) -> None:
    together = embed(client, TEXTS)
    assert [embed(client, text)[0] for text in TEXTS] == together
    plain = embed(client, TEXTS, encoding_format="float")
    assert [pytest.approx(vector, rel=1e-6, abs=1e-9) for vector in together] == plain
    short = embed(client, TEXTS[0], dimensions=64)[0]
    length = math.hypot(*together[0][:64])
    assert short == pytest.approx([number / length for number in together[0][:64]], rel=1e-5, abs=1e-7)


def test_a_long_list_and_a_text_of_the_whole_context(client: Any) -> None:
    assert len(embed(client, [f"number {i}" for i in range(300)])) == 300
    assert len(embed(client, [[7] * 2048])) == 1
    with pytest.raises(openai.BadRequestError, match="context holds"):
        embed(client, [[7] * 100_000])


def test_scores_and_ranks(idle_server: ServerProcess) -> None:
    with httpx.Client(base_url=idle_server.url, timeout=PATIENCE) as http:
        score = http.post("/score", json={"text_1": TEXTS[0], "text_2": TEXTS[1:]}).json()
        rank = http.post("/v1/rerank", json={"query": TEXTS[0], "documents": TEXTS[::-1], "top_n": 2}).json()
    scores = [each["score"] for each in score["data"]]
    assert scores[0] > scores[1]
    assert [each["document"]["text"] for each in rank["results"]] == TEXTS[:2]
    assert rank["results"][1]["relevance_score"] == pytest.approx(scores[0], abs=1e-6)
