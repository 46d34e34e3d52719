"""Embeddings and what is made of them: ``/v1/embeddings`` (OpenAI), ``/score`` and ``/rerank`` (vLLM, Jina).

A score is the cosine of two texts' embeddings, which is what vLLM answers for a model that is no classifier.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.errors import InvalidRequest
from headrace.types import SamplingParams
from headrace.wire.calls import AnswerStyle, Call, Embedding, Prompt, Prompts
from headrace.wire.deltas import Head, Usage
from headrace.wire.fields import Fields, check_text
from headrace.wire.fold import Choice
from headrace.wire.limits import Limits
from headrace.wire.openai_requests import cache_salt
from headrace.wire.prompts import parse_prompts
from headrace.wire.refusals import refuse_unhonoured
from headrace.wire.sampling import INT32

_NONE = SamplingParams(max_tokens=0)
_COMMON = frozenset({"model", "add_special_tokens", "priority", "cache_salt", "timeout"})
EMBED_FIELDS = _COMMON | {"input", "encoding_format", "dimensions"}
SCORE_FIELDS = _COMMON | {"text_1", "text_2", "queries", "documents", "items"}
RERANK_FIELDS = _COMMON | {"query", "documents", "top_n", "return_documents"}
_MAX_DIMENSIONS = 1 << 20


def unit(vector: Sequence[float], dimensions: int | None = None) -> array[float]:
    """The first ``dimensions`` numbers of a vector, all of them if None, brought to length 1 (a zero vector stays)."""
    kept = vector if dimensions is None else vector[:dimensions]
    length = math.hypot(*kept)
    return array("f", [number / length for number in kept] if length > 0 else kept)


def base64_of(vector: array[float]) -> str:
    """Little-endian float32 in base64, as OpenAI's client asks for by default."""
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()


def rounded(vector: Sequence[float]) -> list[float]:
    """As many digits as float32 has: half as long as what Python would write."""
    return [float(f"{number:.9g}") for number in vector]


# -------------------------------------------------------------------------------------------------------- requests


def parse_embeddings(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /v1/embeddings``.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    refuse_unhonoured(body, EMBED_FIELDS)
    fields = Fields(body)
    encoding = fields.text("encoding_format", limits.max_name_chars) or "float"
    if encoding not in ("float", "base64"):
        raise fields.wrong("encoding_format", "must be float or base64")
    style = Embedding(fields.integer("dimensions", 1, _MAX_DIMENSIONS), encoding == "base64")
    return _call(fields, limits, parse_prompts(fields, "input", limits), "input", style)


def parse_score(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /score``: ``text_1`` and ``text_2``, or ``queries`` and ``documents`` (or ``items``).

    One text is compared with each of the second, several with as many of the second, pair by pair.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    refuse_unhonoured(body, SCORE_FIELDS)
    fields = Fields(body)
    names = ("text_1", "text_2") if "text_1" in body or "text_2" in body else ("queries", "documents")
    if names[1] == "documents" and "documents" not in body:
        names = ("queries", "items")
    others = sorted({"text_1", "text_2", "queries", "documents", "items"} & body.keys() - set(names))
    if others:
        raise fields.wrong(others[0], f"does not go with {names[0]} and {names[1]}")
    first, second = (_texts(fields, name, limits) for name in names)
    if len(first) not in (1, len(second)):
        raise fields.wrong(
            names[0], f"has {len(first)} texts and {names[1]} {len(second)}; send one, or as many of each"
        )
    return _call(fields, limits, (*first, *second), names[1], Embedding(queries=len(first)))


def parse_rerank(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /rerank``: ``query`` and ``documents``.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    refuse_unhonoured(body, RERANK_FIELDS)
    fields = Fields(body)
    query = check_text(fields.raw("query"), "query")
    documents = _texts(fields, "documents", limits)
    top = fields.integer("top_n", 0, INT32) or None  # 0 is all of them, as in vLLM
    style = Embedding(queries=1, top=top, documents=fields.boolean("return_documents", True))
    return _call(fields, limits, (query, *documents), "documents", style)


def _call(fields: Fields, limits: Limits, items: tuple[Prompt, ...], name: str, style: Embedding) -> Call:
    if len(items) > limits.max_sequences:
        raise fields.wrong(name, f"makes {len(items)} texts; the limit is {limits.max_sequences}")
    return Call(
        content=Prompts(items, fields.boolean("add_special_tokens", True), field=name),
        sampling=_NONE,
        max_tokens=0,
        style=AnswerStyle(),
        model=fields.text("model", limits.max_name_chars),
        priority=fields.integer("priority", -INT32, INT32) or 0,
        cache_salt=cache_salt(fields),
        timeout=fields.number("timeout", 0, limits.max_timeout, above=True),
        embedding=style,
    )


def _texts(fields: Fields, name: str, limits: Limits) -> tuple[str, ...]:
    """One text or a list of them; Jina's ``{"text": …}`` is a text too."""
    value = fields.raw(name)
    items = value if isinstance(value, list) else [value]
    if not items:
        raise fields.wrong(name, "is an empty list; send at least one text")
    if len(items) > limits.max_prompts:
        raise fields.wrong(name, f"is a list of {len(items)} texts; the limit is {limits.max_prompts}")
    plain = [item["text"] if isinstance(item, dict) and item.keys() == {"text"} else item for item in items]
    return tuple(check_text(item, name) for item in plain)


# --------------------------------------------------------------------------------------------------------- answers


def embeddings_document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """OpenAI's list of embeddings.

    Raises:
        InvalidRequest: more dimensions are asked for than the model has.
    """
    vectors = vectors_of(call, choices)
    base = call.embedding is not None and call.embedding.base64
    data = [
        {"object": "embedding", "index": i, "embedding": base64_of(vector) if base else rounded(vector)}
        for i, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": head.model, "usage": _usage(usage)}


def score_document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """vLLM's list of scores, one for each of the second texts."""
    data = [{"index": i, "object": "score", "score": score} for i, score in enumerate(_scores(call, choices))]
    return {
        "id": head.id,
        "object": "list",
        "created": head.created,
        "model": head.model,
        "data": data,
        "usage": _usage(usage),
    }


def rerank_document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """Jina's list of results, the most relevant first; of equals the one that was sent first."""
    style, items = call.embedding or Embedding(), call.content.items if isinstance(call.content, Prompts) else ()
    scores = _scores(call, choices)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: style.top]
    results = [
        {"index": i, **({"document": {"text": items[style.queries + i]}} if style.documents else {}),
         "relevance_score": scores[i]}
        for i in order
    ]  # fmt: skip
    return {"id": head.id, "model": head.model, "usage": _usage(usage), "results": results}


def vectors_of(call: Call, choices: Sequence[Choice]) -> list[array[float]]:
    """One vector of length 1 for each prompt.

    Raises:
        InvalidRequest: more dimensions are asked for than the model has.
    """
    asked = call.embedding.dimensions if call.embedding is not None else None
    have = len(choices[0].embedding)
    if asked is not None and asked > have:
        raise InvalidRequest(f"dimensions is {asked}, and this model's embeddings have {have}", "dimensions")
    return [unit(choice.embedding, asked) for choice in choices]


def _scores(call: Call, choices: Sequence[Choice]) -> list[float]:
    queries = call.embedding.queries if call.embedding is not None else 0
    vectors = vectors_of(call, choices)
    first, second = vectors[:queries], vectors[queries:]
    pairs = zip(first if len(first) > 1 else first * len(second), second, strict=True)
    return [math.fsum(a * b for a, b in zip(one, other, strict=True)) for one, other in pairs]


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
