"""The application: its routes as a table, and what stands around them as a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from headrace.api.answers import Answerer
from headrace.api.guards import account, guard_keys, refuse_when_draining
from headrace.api.health import HealthRoutes, metrics_route
from headrace.api.hosting import Models
from headrace.api.lifecycle import Lifecycle
from headrace.api.models import ModelRoutes
from headrace.api.ports import ASGIApp, Receive, Scope, Send
from headrace.api.settings import ServerSettings
from headrace.errors import MethodNotAllowed, RouteNotFound
from headrace.metrics import Exposition, Recorder
from headrace.wire.dialects import CHAT, COMPLETIONS
from headrace.wire.failures import OPENAI, ErrorShape


@dataclass(frozen=True, slots=True)
class Route:
    """A path, or with ``{id}`` at its end everything below it. ``open`` routes need no key and survive draining.

    ``errors`` is the shape of everything that goes wrong there, the guards' refusals included.
    """

    method: str
    path: str
    handler: ASGIApp
    open: bool = False
    while_draining: bool = False
    errors: ErrorShape = OPENAI


class App:
    """One server's HTTP side as an ASGI application. `start` and `stop` are called on its event loop."""

    def __init__(self, models: Models, recorder: Recorder, settings: ServerSettings | None = None) -> None:
        self.settings = settings or ServerSettings()
        self.lifecycle = Lifecycle()
        self.models = models
        self.routes = self._table(models, recorder)
        self._app = self._wrap(route(self.routes), recorder)

    def _table(self, models: Models, recorder: Recorder) -> tuple[Route, ...]:
        health = HealthRoutes(models, self.lifecycle)
        listing = ModelRoutes(models)
        completions = Answerer(COMPLETIONS, models, self.settings)
        chat = Answerer(CHAT, models, self.settings)
        metrics = metrics_route(models, Exposition(recorder))
        return (
            Route("POST", "/v1/chat/completions", chat),
            Route("POST", "/v1/completions", completions),
            Route("GET", "/v1/models", listing.list),
            Route("GET", "/v1/models/{id}", listing.one),
            Route("GET", "/health", health.both, open=True, while_draining=True),
            Route("GET", "/health/live", health.live, open=True, while_draining=True),
            Route("GET", "/health/ready", health.ready, open=True, while_draining=True),
            Route("GET", "/metrics", metrics, while_draining=True),
        )

    def _wrap(self, app: ASGIApp, recorder: Recorder) -> ASGIApp:
        """The guards, innermost first."""
        draining = {each.path.encode() for each in self.routes if each.while_draining}
        unlocked = {each.path.encode() for each in self.routes if each.open}
        app = refuse_when_draining(app, self.lifecycle, draining)
        app = guard_keys(app, self.settings.api_keys, unlocked)
        return account(app, recorder, error_shapes(self.routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP exchange. Other protocols (websocket, lifespan) are not spoken."""
        if scope["type"] != "http":
            raise ValueError(f"this application does not speak {scope['type']}")
        await self._app(scope, receive, send)

    async def start(self) -> None:
        """Start the engines, and look after open replies from now on."""
        self.models.start()

    async def stop(self) -> None:
        """Stop looking after replies. Engines are their owners' to stop."""
        self.models.stop()


def error_shapes(routes: Sequence[Route]) -> Callable[[bytes], ErrorShape]:
    """Path → shape of its errors. A path without a route has that of its folder, if the routes there agree on one."""
    exact = {each.path.encode(): each.errors for each in routes}
    folders: dict[bytes, set[ErrorShape]] = {}
    for each in routes:
        folders.setdefault(each.path.rpartition("/")[0].encode(), set()).add(each.errors)

    def shape_of(path: bytes) -> ErrorShape:
        found = exact.get(path)
        if found is not None:
            return found
        here = folders.get(path.rpartition(b"/")[0], set())
        return next(iter(here)) if len(here) == 1 else OPENAI

    return shape_of


def route(routes: Sequence[Route]) -> ASGIApp:
    """An application that hands each exchange to the route of its method and its path, compared byte for byte.

    A GET route answers HEAD as well; the server drops the body.
    """
    exact: dict[bytes, dict[str, Route]] = {}
    below: dict[bytes, dict[str, Route]] = {}
    for each in routes:
        table, path = (below, each.path.removesuffix("{id}")) if each.path.endswith("{id}") else (exact, each.path)
        methods = table.setdefault(path.encode(), {})
        methods[each.method] = each
        if each.method == "GET":
            methods["HEAD"] = each

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        path: bytes = scope["raw_path"]
        methods = exact.get(path)
        if methods is None:
            prefix = next((each for each in below if path.startswith(each) and len(path) > len(each)), None)
            if prefix is None:
                raise RouteNotFound("there is nothing at this path")
            methods = below[prefix]
            scope["headrace.rest"] = unquote(path[len(prefix) :].decode("latin-1"))
        found = methods.get(scope["method"])
        if found is None:
            allowed = ", ".join(sorted(methods))
            scope["headrace.error_headers"] = [(b"allow", allowed.encode())]
            raise MethodNotAllowed(f"this path takes {allowed}")
        scope["headrace.route"] = found.path
        await found.handler(scope, receive, send)

    return routed
