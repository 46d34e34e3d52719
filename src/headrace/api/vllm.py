"""vLLM's routes beside OpenAI's: scores, ranks, tokens, version, load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace import __version__
from headrace.api.admission import encode
from headrace.api.answers import Answerer
from headrace.api.exchange import respond_json
from headrace.api.hosting import Models
from headrace.api.inquiry import Inquiry
from headrace.api.ports import Receive, Scope, Send
from headrace.api.routes import Route
from headrace.api.settings import Served, ServerSettings
from headrace.wire.dialects import RERANK, SCORE
from headrace.wire.tokens import parse_detokenize, parse_tokenize


def vllm_routes(models: Models, settings: ServerSettings) -> tuple[Route, ...]:
    """All of them but ``/tokenize``, whose path is TGI's too."""
    score, rerank = Answerer(SCORE, models, settings), Answerer(RERANK, models, settings)

    async def load(scope: Scope, receive: Receive, send: Send) -> None:
        await respond_json(send, {"server_load": models.open})

    return (
        *(Route("POST", path, score) for path in ("/score", "/v1/score")),
        *(Route("POST", path, rerank) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
        Route("POST", "/detokenize", Inquiry(models, settings, _detokenize)),
        Route("GET", "/version", _version),
        Route("GET", "/load", load),
    )


async def tokenize(served: Served, body: Mapping[str, Any]) -> dict[str, Any]:
    """A text's or a chat's token ids."""
    content, strings = parse_tokenize(body, served.limits)
    (tokens,) = await encode(content, served.words)
    texts = [served.words.token_bytes(token).decode("utf-8", "replace") for token in tokens] if strings else None
    return {
        "count": len(tokens),
        "max_model_len": served.limits.max_model_len,
        "tokens": tokens,
        "token_strs": texts,
    }


async def _detokenize(served: Served, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": served.words.decode(parse_detokenize(body, served.limits))}


async def _version(scope: Scope, receive: Receive, send: Send) -> None:
    await respond_json(send, {"version": __version__})
