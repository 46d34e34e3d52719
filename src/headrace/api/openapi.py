"""``/openapi.json``: the routes of this very server, described."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace import __version__
from headrace.api.exchange import JSON, respond
from headrace.api.ports import Receive, Scope, Send
from headrace.api.routes import Route
from headrace.wire.chunks import to_json


class OpenApi:
    """The document, made when it is first asked for."""

    def __init__(self, routes: Callable[[], Sequence[Route]]) -> None:
        self._routes = routes
        self._document = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The whole document."""
        if not self._document:
            from headrace.wire.openapi.document import openapi_document  # tables that nothing else needs

            pairs = [(route.method, route.path) for route in self._routes()]
            self._document = to_json(openapi_document(pairs, __version__)).encode()
        await respond(send, 200, self._document, JSON)
