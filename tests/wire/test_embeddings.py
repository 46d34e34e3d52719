"""Embeddings, scores and ranks: what is asked for, and what is made of the model's vectors."""

import base64
import math
import struct
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest, RequestError, Unsupported
from headrace.wire.calls import Prompts
from headrace.wire.deltas import Head, Usage
from headrace.wire.dialects import EMBEDDINGS, RERANK, SCORE, Dialect
from headrace.wire.embeddings import base64_of, unit
from headrace.wire.fold import Choice
from headrace.wire.limits import Limits

LIMITS = Limits(max_model_len=100, vocab_size=50)
HEAD = Head("id-1", 1_700_000_000, "tiny", "headrace")
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def answer(dialect: Dialect, body: dict[str, Any], *vectors: list[float]) -> Any:
    call = dialect.parse(body, LIMITS, {})
    assert isinstance(call.content, Prompts)
    assert len(call.content.items) == len(vectors)
    choices = [Choice(embedding=array("f", vector)) for vector in vectors]
    return dialect.document(HEAD, call, choices, Usage(prompt_tokens=7, cached_tokens=2))


@given(st.lists(NUMBERS, min_size=1, max_size=40), st.integers(1, 40))
def test_a_unit_vector_has_the_direction_and_length_1(numbers: list[float], dimensions: int) -> None:
    vector = unit(array("f", numbers), dimensions)
    kept = numbers[:dimensions]
    assert len(vector) == len(kept)
    length = math.sqrt(sum(number * number for number in kept))
    if length < 1e-18:
        return
    assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-5)
    assert all(
        math.isclose(got * length, want, rel_tol=1e-5, abs_tol=1e-6 * length)
        for got, want in zip(vector, kept, strict=True)
    )


def test_a_zero_vector_stays() -> None:
    assert list(unit([0.0, 0.0])) == [0.0, 0.0]


@given(st.lists(NUMBERS, max_size=9))
def test_base64_is_little_endian_float32(numbers: list[float]) -> None:
    data = base64.b64decode(base64_of(array("f", numbers)))
    assert list(struct.unpack(f"<{len(numbers)}f", data)) == list(array("f", numbers))


def test_embeddings() -> None:
    document = answer(EMBEDDINGS, {"input": ["a", "b"], "model": "m", "user": "u"}, [3, 4], [0, 2])
    assert document == {
        "object": "list",
        "model": "tiny",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [pytest.approx(0.6), pytest.approx(0.8)]},
            {"object": "embedding", "index": 1, "embedding": [0.0, 1.0]},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}},
    }
    short = answer(EMBEDDINGS, {"input": [1, 2], "dimensions": 1, "encoding_format": "base64"}, [3, 4])
    assert short["data"][0]["embedding"] == base64.b64encode(struct.pack("<f", 1.0)).decode()
    with pytest.raises(InvalidRequest, match="dimensions is 3, and this model's embeddings have 2"):
        answer(EMBEDDINGS, {"input": "a", "dimensions": 3}, [3, 4])


def test_scores() -> None:
    one = answer(SCORE, {"text_1": "q", "text_2": ["a", "b"]}, [1, 0], [0, 5], [2, 2])
    assert [each["score"] for each in one["data"]] == [pytest.approx(0), pytest.approx(math.sqrt(0.5))]
    assert [each["index"] for each in one["data"]] == [0, 1]
    pairs = answer(SCORE, {"queries": ["q", "r"], "documents": ["a", "b"]}, [1, 0], [0, 1], [1, 0], [1, 0])
    assert [each["score"] for each in pairs["data"]] == [pytest.approx(1), pytest.approx(0)]
    assert answer(SCORE, {"queries": "q", "items": ["a"]}, [1, 0], [1, 0])["object"] == "list"


def test_ranks() -> None:
    body: dict[str, Any] = {"query": "q", "documents": ["far", {"text": "near"}, "near too"]}
    vectors: tuple[list[float], ...] = ([1, 0], [0, 1], [1, 0.1], [1, 0.1])
    full = answer(RERANK, body, *vectors)
    assert [each["index"] for each in full["results"]] == [1, 2, 0]
    assert full["results"][0]["document"] == {"text": "near"}
    assert full["usage"]["total_tokens"] == 7
    best = answer(RERANK, {**body, "top_n": 1, "return_documents": False}, *vectors)
    assert [sorted(each) for each in best["results"]] == [["index", "relevance_score"]]


@pytest.mark.parametrize(
    ("dialect", "body", "words"),
    [
        (EMBEDDINGS, {}, "input must be text"),
        (EMBEDDINGS, {"input": []}, "input must be text"),
        (EMBEDDINGS, {"input": ["a", 1]}, "input must be a string"),
        (EMBEDDINGS, {"input": [50]}, "token ids from 0 to 49"),
        (EMBEDDINGS, {"input": [[1] * 101]}, "context holds 100"),
        (EMBEDDINGS, {"input": "a", "encoding_format": "hex"}, "float or base64"),
        (EMBEDDINGS, {"input": "a", "dimensions": 0}, "dimensions must be an integer"),
        (EMBEDDINGS, {"input": "a", "stream": True}, "unknown field 'stream'"),
        (EMBEDDINGS, {"input": ["a"] * 1025}, "the limit is 1024"),
        (SCORE, {"text_1": "a"}, "text_2 must be a string"),
        (SCORE, {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "send one, or as many of each"),
        (SCORE, {"text_1": "a", "text_2": "b", "documents": "c"}, "does not go with"),
        (SCORE, {"text_1": "a", "text_2": []}, "empty list"),
        (SCORE, {"text_1": ["a"] * 600, "text_2": ["a"] * 600}, "the limit is 1024"),
        (RERANK, {"documents": ["a"]}, "query must be a string"),
        (RERANK, {"query": "a", "documents": [{"image": "x"}]}, "documents must be a string"),
        (RERANK, {"query": "a", "documents": ["b"], "top_n": -1}, "top_n must be an integer"),
    ],
)
def test_wrong_bodies_are_refused_by_name(dialect: Dialect, body: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        dialect.parse(body, LIMITS, {})
    assert caught.value.status == 400


def test_what_is_known_and_not_done_is_said() -> None:
    with pytest.raises(Unsupported, match="truncate_prompt_tokens"):
        EMBEDDINGS.parse({"input": "a", "truncate_prompt_tokens": 5}, LIMITS, {})
