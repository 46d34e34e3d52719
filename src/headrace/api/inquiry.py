"""Routes that answer from a model's words alone: a body goes in, a document comes out, no engine in between."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from headrace.api.exchange import read_json, respond_json
from headrace.api.hosting import Models
from headrace.api.ports import Receive, Scope, Send
from headrace.api.settings import Served, ServerSettings
from headrace.wire.dialects import asked_model
from headrace.wire.failures import ErrorShape

Answer = Callable[[Served, Mapping[str, Any]], Awaitable[Any]]


class Inquiry:
    """One such route. ``model`` reads the model's name out of the body, ``answer`` makes the document.

    ``shape`` tells from a body in which shape its errors are told; None leaves them in the route's.
    """

    def __init__(
        self,
        models: Models,
        settings: ServerSettings,
        answer: Answer,
        model: Callable[[Mapping[str, Any]], str | None] = asked_model,
        shape: Callable[[Mapping[str, Any]], ErrorShape | None] = lambda body: None,
    ) -> None:
        self._models = models
        self._settings = settings
        self._answer = answer
        self._model = model
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        settings, models = self._settings, self._models
        deadline = None if settings.request_timeout is None else time.monotonic() + settings.request_timeout
        with models.preparing():
            body = await read_json(scope, receive, settings)
        scope["headrace.errors"] = self._shape(body)
        async with models.lease(self._model(body), deadline, receive) as hosted:
            with models.preparing():
                document = await self._answer(hosted.served, body)
        await respond_json(send, document)
