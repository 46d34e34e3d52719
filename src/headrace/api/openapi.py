"""``/openapi.json``: the routes of this very server, described."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace import __version__
from headrace.api.exchange import respond_json
from headrace.api.hosting import Models
from headrace.api.ports import Receive, Scope, Send
from headrace.api.routes import Route
from headrace.api.settings import PLACEHOLDER_NAMES


class OpenApi:
    """The document, with the names that models have at this moment."""

    def __init__(self, routes: Callable[[], Sequence[Route]], models: Models) -> None:
        self._routes = routes
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The whole document."""
        from headrace.wire.openapi.document import openapi_document  # tables that nothing else needs

        pairs = [(route.method, route.path) for route in self._routes()]
        names = [*(entry.name for entry in self._models.entries), *sorted(PLACEHOLDER_NAMES)]
        vocabulary = max((each.served.limits.vocab_size for each in self._models.loaded), default=1 << 31)
        await respond_json(send, openapi_document(pairs, names, vocabulary, __version__))
