"""TGI's routes: `headrace.wire.tgi` says how they read and write."""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import Mapping, Sequence
from typing import Any

from headrace import __version__
from headrace.api.admission import encode
from headrace.api.answers import Answerer
from headrace.api.exchange import respond_json
from headrace.api.hosting import Models
from headrace.api.inquiry import Inquiry
from headrace.api.ports import Receive, Scope, Send, Words
from headrace.api.routes import Route
from headrace.api.settings import Served, ServerSettings
from headrace.api.vllm import tokenize
from headrace.wire.dialects import asked_model
from headrace.wire.failures import OPENAI, ErrorShape
from headrace.wire.openai_requests import parse_chat
from headrace.wire.tgi import ERRORS, GENERATE, GENERATE_STREAM, ROOT
from headrace.wire.tgi_requests import parse_inputs


def tgi_routes(models: Models, settings: ServerSettings) -> tuple[Route, ...]:
    """All of TGI's own routes (its ``/v1/*`` are OpenAI's, its GET ``/`` is health and shared with Ollama)."""
    return (
        Route("POST", "/", Answerer(ROOT, models, settings), errors=ERRORS),
        Route("POST", "/generate", Answerer(GENERATE, models, settings), errors=ERRORS),
        Route("POST", "/generate_stream", Answerer(GENERATE_STREAM, models, settings), errors=ERRORS),
        Route("GET", "/info", _Info(models, settings), errors=ERRORS),
        Route("POST", "/tokenize", Inquiry(models, settings, _tokenize, asked_model, _shape), errors=ERRORS),
        Route("POST", "/chat_tokenize", Inquiry(models, settings, _chat_tokenize), errors=ERRORS),
    )


class _Info:
    def __init__(self, models: Models, settings: ServerSettings) -> None:
        self._models = models
        self._timeout = settings.request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is served, and its limits."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        async with self._models.lease(None, deadline, receive) as hosted:
            served = hosted.served
        limits = served.limits
        document = {
            "model_id": served.names[0],
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": limits.max_sequences,
            "max_best_of": limits.max_n,
            "max_stop_sequences": limits.max_stop,
            "max_input_tokens": limits.max_model_len - 1,
            "max_total_tokens": limits.max_model_len,
            "validation_workers": 2,
            "max_client_batch_size": 1,
            "router": "text-generation-router",
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
        await respond_json(send, document)


def _shape(body: Mapping[str, Any]) -> ErrorShape | None:
    """``/tokenize`` is vLLM's too, whose bodies have no ``inputs``."""
    return None if "inputs" in body else OPENAI


async def _tokenize(served: Served, body: Mapping[str, Any]) -> Any:
    """Each token with the characters of ``inputs`` that it came from; of vLLM's bodies, vLLM's document."""
    if "inputs" not in body:
        return await tokenize(served, body)
    text = parse_inputs(body)
    spans = await asyncio.to_thread(served.words.encode_spans, text)
    return [{"id": token, "text": text[start:stop], "start": start, "stop": stop} for token, start, stop in spans]


async def _chat_tokenize(served: Served, body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat's prompt as the model gets it: its text, and its tokens in that text."""
    call = parse_chat(body, served.limits, served.sampling_defaults)
    (prompt,) = await encode(call.content, served.words)
    tokens = _spelled(prompt, served.words)
    return {"tokenize_response": tokens, "templated_text": "".join(token["text"] for token in tokens)}


def _spelled(prompt: Sequence[int], words: Words) -> list[dict[str, Any]]:
    """A character of several tokens is in the token that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens: list[dict[str, Any]] = []
    offset = 0
    for token in prompt:
        text = decoder.decode(words.token_bytes(token))
        tokens.append({"id": token, "text": text, "start": offset, "stop": offset + len(text)})
        offset += len(text)
    return tokens
