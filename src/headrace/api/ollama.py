"""Ollama's routes for text: `headrace.wire.ollama` says how they read and write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from headrace.access import Scope as Access
from headrace.api.answers import Answerer
from headrace.api.exchange import read_json, respond_json
from headrace.api.hosting import Models
from headrace.api.ollama_models import ModelRoutes
from headrace.api.ports import ASGIApp, Receive, Scope, Send
from headrace.api.routes import Route
from headrace.api.settings import ServerSettings
from headrace.api.shelf import Shelf
from headrace.wire import ollama
from headrace.wire.dialects import Dialect
from headrace.wire.limits import Limits
from headrace.wire.ollama_embeddings import EMBED, EMBEDDINGS, empty_embed, empty_older
from headrace.wire.ollama_requests import asked_model, keep_alive

_ANY_MODEL = Limits(max_model_len=1 << 31, vocab_size=1 << 31)
"""What a model allows whose limits are not known, because it is not in memory."""


class TextRoute:
    """A route with a ``prompt``, a field of that name. Without it the model is loaded; with ``keep_alive`` 0, unloaded.
    A call that is refused changes nothing of how long the model stays, and none sends away a model that is pinned.

    ``empty`` is the answer then: of the model's name, and whether it was unloaded.
    """

    def __init__(
        self,
        models: Models,
        settings: ServerSettings,
        dialect: Dialect,
        prompt: str,
        empty: Callable[[str, bool], dict[str, Any]],
    ) -> None:
        self._models = models
        self._settings = settings
        self._prompt = prompt
        self._empty = empty
        self._dialect = dialect
        self._answerer = Answerer(dialect, models, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        arrival = time.monotonic()
        with self._models.preparing():
            body = await read_json(scope, receive, self._settings, any_media_type=True)
        model, stay = asked_model(body), keep_alive(body)
        if body.get(self._prompt):
            await self._answerer.answer(body, arrival, scope, receive, send)
            self._keep(model, stay)
        else:
            limit = self._settings.request_timeout
            await self._load(body, model, stay, None if limit is None else arrival + limit, receive, send)

    async def _load(
        self,
        body: Mapping[str, Any],
        model: str,
        stay: float | None,
        deadline: float | None,
        receive: Receive,
        send: Send,
    ) -> None:
        leaves = stay == 0 and not self._models.pinned(model)
        stand_in = [{"role": "user", "content": "."}] if self._prompt == "messages" else "."
        self._dialect.parse({**body, self._prompt: stand_in}, _ANY_MODEL, {})  # for its refusals
        if not leaves:
            await self._models.load(model, deadline, receive)
        self._keep(model, stay)
        await respond_json(send, self._empty(model, leaves))

    def _keep(self, model: str, stay: float | None) -> None:
        """0 sends it away now, and says nothing of the next time."""
        if stay == 0:
            if not self._models.pinned(model):
                self._models.unload(model)
        elif stay is not None:
            self._models.keep_alive(model, stay if stay > 0 else None)


def ollama_routes(models: Models, settings: ServerSettings, shelf: Shelf | None) -> tuple[Route, ...]:
    """All of Ollama's own routes (its ``/v1/*`` are OpenAI's and Anthropic's, ``/`` is in `headrace.api.health`)."""
    about = ModelRoutes(models, settings, shelf)
    handlers: tuple[tuple[str, str, ASGIApp], ...] = (
        ("POST", "/api/generate", TextRoute(models, settings, ollama.GENERATE, "prompt", ollama.loaded_generate)),
        ("POST", "/api/chat", TextRoute(models, settings, ollama.CHAT, "messages", ollama.loaded_chat)),
        ("POST", "/api/embed", TextRoute(models, settings, EMBED, "input", empty_embed)),
        ("POST", "/api/embeddings", TextRoute(models, settings, EMBEDDINGS, "prompt", empty_older)),
        ("GET", "/api/tags", about.tags),
        ("GET", "/api/ps", about.ps),
        ("GET", "/api/version", about.version),
        ("POST", "/api/show", about.show),
        ("POST", "/api/pull", about.pull),
        ("POST", "/api/copy", about.copy),
        ("DELETE", "/api/delete", about.delete),
    )
    return tuple(
        Route(method, path, handler, errors=ollama.ERRORS, access=_access(path)) for method, path, handler in handlers
    )


def _access(path: str) -> Access:
    """What changes the disk is not for every key."""
    return Access.ADMIN if path in ("/api/pull", "/api/copy", "/api/delete") else Access.INFERENCE
