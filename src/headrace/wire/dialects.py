"""What differs between dialects, as data: everything else about a call is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from headrace.wire.calls import AnswerStyle, Call
from headrace.wire.chunks import ChatWriter, ChunkWriter, CompletionWriter, NoStream
from headrace.wire.deltas import Head, Usage
from headrace.wire.embeddings import (
    embeddings_document,
    parse_embeddings,
    parse_rerank,
    parse_score,
    rerank_document,
    score_document,
)
from headrace.wire.failures import OPENAI, ErrorShape
from headrace.wire.fields import Fields
from headrace.wire.fold import Choice, Document, chat_document, completion_document
from headrace.wire.limits import MAX_NAME_CHARS, MAX_TIMEOUT, Limits
from headrace.wire.openai_requests import parse_chat, parse_completion

Headers = tuple[tuple[bytes, bytes], ...]
EVENT_STREAM: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the stream otherwise
)


def asked_model(body: Mapping[str, Any]) -> str | None:
    """The field ``model``, as most dialects have it."""
    return Fields(body).text("model", MAX_NAME_CHARS)


def asked_timeout(body: Mapping[str, Any]) -> float | None:
    """The field ``timeout`` in seconds. It bounds the waiting for the model too, and so is looked at before there is
    one; a dialect that has no such field refuses it when it parses the body."""
    return Fields(body).number("timeout", 0, MAX_TIMEOUT, above=True)


def no_headers(call: Call, usage: Usage) -> Headers:
    """Nothing beside the body."""
    return ()


class Dialect(Struct, frozen=True):
    """How one route reads a body and writes an answer."""

    id_prefix: str
    parse: Callable[[Mapping[str, Any], Limits, Mapping[str, float]], Call]
    writer: Callable[[Head, Call], ChunkWriter]
    """A new one for each stream."""
    document: Callable[[Head, Call, list[Choice], Usage], Any]
    """The whole answer as JSON."""
    model: Callable[[Mapping[str, Any]], str | None] = asked_model
    """The model that a body asks for: it is found before the body is parsed, whose limits are the model's."""
    errors: ErrorShape = OPENAI
    stream_headers: Headers = EVENT_STREAM
    headers: Callable[[Call, Usage], Headers] = no_headers
    """Of a whole answer."""
    any_media_type: bool = False
    """The body is JSON whatever its Content-Type says (see `headrace.api.exchange.read_json`)."""


def _styled(writer: Callable[[Head, AnswerStyle], ChunkWriter]) -> Callable[[Head, Call], ChunkWriter]:
    return lambda head, call: writer(head, call.style)


def _folded(document: Document) -> Callable[[Head, Call, list[Choice], Usage], Any]:
    return lambda head, call, choices, usage: document(head, call.style, choices, usage)


COMPLETIONS = Dialect("cmpl-", parse_completion, _styled(CompletionWriter), _folded(completion_document))
CHAT = Dialect("chatcmpl-", parse_chat, _styled(ChatWriter), _folded(chat_document))

EMBEDDINGS = Dialect("embd-", parse_embeddings, NoStream, embeddings_document)
SCORE = Dialect("score-", parse_score, NoStream, score_document)
RERANK = Dialect("rerank-", parse_rerank, NoStream, rerank_document)
