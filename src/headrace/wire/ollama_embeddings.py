"""Ollama's ``/api/embed``, and ``/api/embeddings`` as it was before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import InvalidRequest
from headrace.types import SamplingParams
from headrace.wire.calls import AnswerStyle, Call, Embedding, Prompts
from headrace.wire.chunks import NoStream
from headrace.wire.deltas import Head, Usage
from headrace.wire.dialects import Dialect
from headrace.wire.embeddings import rounded, vectors_of
from headrace.wire.fields import Fields, check_text, shown
from headrace.wire.fold import Choice
from headrace.wire.limits import Limits
from headrace.wire.ollama import ERRORS, model_name, nanoseconds
from headrace.wire.ollama_options import parse_options
from headrace.wire.ollama_requests import MAX_OPTIONS, asked_model

_COMMON = frozenset({"model", "options", "keep_alive"})
_EMBED = _COMMON | {"input", "truncate", "dimensions"}
_OLDER = _COMMON | {"prompt"}
_MAX_DIMENSIONS = 1 << 20


def parse_embed(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /api/embed``. ``truncate`` keeps the first tokens of a text that is too long for the context;
    it is off unless asked for, where Ollama's own default is to cut in silence.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    fields = _known(body, _EMBED)
    value = fields.raw("input")
    items = value if isinstance(value, list) else [value]
    if len(items) > limits.max_prompts:
        raise fields.wrong("input", f"is a list of {len(items)} texts; the limit is {limits.max_prompts}")
    texts = tuple(check_text(item, "input") for item in items)
    cut = limits.max_model_len if fields.boolean("truncate") else None
    prompts = Prompts(texts, truncate=cut, keep_first=True, field="input")
    return _call(fields, limits, defaults, prompts, fields.integer("dimensions", 1, _MAX_DIMENSIONS))


def parse_older(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /api/embeddings``: one text.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    fields = _known(body, _OLDER)
    return _call(fields, limits, defaults, Prompts((check_text(fields.raw("prompt"), "prompt"),)), None)


def embed_document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """The answer of ``/api/embed``."""
    return {
        "model": model_name(head, call),
        "embeddings": [rounded(vector) for vector in vectors_of(call, choices)],
        "total_duration": nanoseconds(usage.timing.total),
        "load_duration": nanoseconds(usage.timing.load),
        "prompt_eval_count": usage.prompt_tokens,
    }


def older_document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """The answer of ``/api/embeddings``."""
    (vector,) = vectors_of(call, choices)
    return {"embedding": rounded(vector)}


def empty_embed(model: str, unloaded: bool) -> dict[str, Any]:
    """The answer of ``/api/embed`` to no text at all."""
    return {"model": model, "embeddings": []}


def empty_older(model: str, unloaded: bool) -> dict[str, Any]:
    """The answer of ``/api/embeddings`` to no text at all."""
    return {"embedding": []}


def _known(body: Mapping[str, Any], names: frozenset[str]) -> Fields:
    for name in body:
        if name not in names:
            raise InvalidRequest(f"unknown field {shown(name)}", name[:64].encode("utf-8", "replace").decode())
    return Fields(body)


def _call(
    fields: Fields, limits: Limits, defaults: Mapping[str, float], prompts: Prompts, dimensions: int | None
) -> Call:
    parse_options(fields.mapping("options", MAX_OPTIONS), limits, None, defaults)  # none of them changes an embedding
    return Call(
        content=prompts,
        sampling=SamplingParams(max_tokens=0),
        max_tokens=0,
        style=AnswerStyle(),
        model=asked_model({"model": fields.raw("model")}),
        embedding=Embedding(dimensions),
    )


EMBED = Dialect("embd-", parse_embed, NoStream, embed_document, asked_model, ERRORS, any_media_type=True)
EMBEDDINGS = Dialect("embd-", parse_older, NoStream, older_document, asked_model, ERRORS, any_media_type=True)
