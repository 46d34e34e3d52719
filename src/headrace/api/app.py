"""The application: its routes as a table, and what stands around them as a list."""

from __future__ import annotations

from headrace.access import Scope as Access
from headrace.api.admin import AdminRoutes
from headrace.api.answers import Answerer
from headrace.api.anthropic import anthropic_routes
from headrace.api.callers import Keys
from headrace.api.guards import account, guard_keys, refuse_when_draining
from headrace.api.health import HealthRoutes, metrics_route
from headrace.api.hosting import Models
from headrace.api.lifecycle import Lifecycle
from headrace.api.models import ModelRoutes
from headrace.api.ollama import ollama_routes
from headrace.api.openapi import OpenApi
from headrace.api.ports import ASGIApp, Receive, Scope, Send
from headrace.api.responses import response_routes
from headrace.api.routes import Route, error_shapes, exchanges, finder, route
from headrace.api.settings import ServerSettings
from headrace.api.shelf import Shelf
from headrace.api.tgi import tgi_routes
from headrace.api.vllm import vllm_routes
from headrace.metrics import Exposition, Recorder
from headrace.wire.dialects import CHAT, COMPLETIONS, EMBEDDINGS
from headrace.wire.tgi import ERRORS as TGI_ERRORS


class App:
    """One server's HTTP side as an ASGI application. `start` and `stop` are called on its event loop."""

    def __init__(
        self, models: Models, recorder: Recorder, settings: ServerSettings | None = None, shelf: Shelf | None = None
    ) -> None:
        """``shelf`` is where clients may change what is on the disk; without one they may not."""
        self.settings = settings or ServerSettings()
        self.lifecycle = Lifecycle()
        self.models = models
        self.keys = Keys(self.settings)
        self.routes = self._table(models, recorder, shelf)
        self._app = self._wrap(route(self.routes), recorder)

    def _table(self, models: Models, recorder: Recorder, shelf: Shelf | None) -> tuple[Route, ...]:
        health = HealthRoutes(models, self.lifecycle)
        listing = ModelRoutes(models)
        completions = Answerer(COMPLETIONS, models, self.settings)
        chat = Answerer(CHAT, models, self.settings)
        metrics = metrics_route(models, Exposition(recorder))
        return (
            Route("POST", "/v1/chat/completions", chat),
            Route("POST", "/v1/completions", completions),
            Route("POST", "/v1/embeddings", Answerer(EMBEDDINGS, models, self.settings)),
            *response_routes(models, self.settings),
            Route("GET", "/v1/models", listing.list),
            Route("GET", "/v1/models/{id}", listing.one),
            Route("GET", "/", health.root, open=True, while_draining=True, errors=TGI_ERRORS),
            Route("GET", "/health", health.both, open=True, while_draining=True),
            Route("GET", "/health/live", health.live, open=True, while_draining=True),
            Route("GET", "/health/ready", health.ready, open=True, while_draining=True),
            Route("GET", "/metrics", metrics, while_draining=True, access=Access.METRICS),
            *tgi_routes(models, self.settings),
            *vllm_routes(models, self.settings),
            *ollama_routes(models, self.settings, shelf),
            *AdminRoutes(models, self.settings, with_keys=self.keys.asked_for).routes,
            *anthropic_routes(models, self.settings),
            Route("GET", "/openapi.json", OpenApi(lambda: self.routes, models)),
        )

    def _wrap(self, app: ASGIApp, recorder: Recorder) -> ASGIApp:
        """The guards, innermost first."""
        app = refuse_when_draining(app, self.lifecycle, exchanges(each for each in self.routes if each.while_draining))
        share, find = self.settings.share_prefixes, finder(self.routes)
        app = guard_keys(app, self.keys, find, share_prefixes=share, recorder=recorder)
        return account(app, recorder, error_shapes(self.routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP exchange. Other protocols (websocket, lifespan) are not spoken."""
        if scope["type"] != "http":
            raise ValueError(f"this application does not speak {scope['type']}")
        await self._app(scope, receive, send)

    async def start(self) -> None:
        """Start the engines, and look after open replies from now on."""
        self.models.start()
        self.keys.start()

    async def stop(self) -> None:
        """Stop looking after replies. Engines are their owners' to stop."""
        self.keys.stop()
        self.models.stop()
