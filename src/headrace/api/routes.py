"""Routes as a table: which handler takes which path, and in which shape its errors are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from urllib.parse import unquote

from msgspec import Struct

from headrace.access import Scope as Access
from headrace.api.ports import ASGIApp, Receive, Scope, Send
from headrace.errors import MethodNotAllowed, RouteNotFound
from headrace.wire.failures import OPENAI, ErrorShape


class Route(Struct, frozen=True):
    """A path, or with ``{id}`` at its end everything below it. ``open`` routes need no key and survive draining.

    ``errors`` is the shape of everything that goes wrong there, the guards' refusals included. ``access`` is what a key
    must be good for.
    """

    method: str
    path: str
    handler: ASGIApp
    open: bool = False
    while_draining: bool = False
    errors: ErrorShape = OPENAI
    access: Access = Access.INFERENCE

    @property
    def metered(self) -> bool:
        """Whether requests count against a key's quota: those that make the server work."""
        return self.access is Access.INFERENCE and self.method == "POST"


def finder(routes: Sequence[Route]) -> Callable[[str, bytes], Route | None]:
    """(method, path) → the route that takes them, compared byte for byte; what answers GET answers HEAD."""
    exact = {(each.method, each.path.encode()): each for each in routes if not each.path.endswith("{id}")}
    below = [(each.path.removesuffix("{id}").encode(), each) for each in routes if each.path.endswith("{id}")]

    def find(method: str, path: bytes) -> Route | None:
        method = "GET" if method == "HEAD" else method
        found = exact.get((method, path))
        if found is None:
            for prefix, each in below:
                if each.method == method and path.startswith(prefix) and len(path) > len(prefix):
                    return each
        return found

    return find


def exchanges(routes: Iterable[Route]) -> frozenset[tuple[str, bytes]]:
    """The methods and paths of routes. What answers GET answers HEAD."""
    pairs = {(each.method, each.path.encode()) for each in routes}
    return frozenset(pairs | {("HEAD", path) for method, path in pairs if method == "GET"})


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
