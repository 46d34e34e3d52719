"""Anthropic's routes: `headrace.wire.anthropic` says how they read and write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.api.admission import encode
from headrace.api.answers import Answerer
from headrace.api.hosting import Models
from headrace.api.inquiry import Inquiry
from headrace.api.routes import Route
from headrace.api.settings import Served, ServerSettings
from headrace.wire.anthropic import ERRORS, MESSAGES
from headrace.wire.anthropic_requests import parse_count


def anthropic_routes(models: Models, settings: ServerSettings) -> tuple[Route, ...]:
    """Messages, and how many tokens they have."""
    return (
        Route("POST", "/v1/messages", Answerer(MESSAGES, models, settings), errors=ERRORS),
        Route("POST", "/v1/messages/count_tokens", Inquiry(models, settings, _count), errors=ERRORS),
    )


async def _count(served: Served, body: Mapping[str, Any]) -> dict[str, int]:
    call = parse_count(body, served.limits, served.sampling_defaults)
    (prompt,) = await encode(call.content, served.words)
    return {"input_tokens": len(prompt)}
