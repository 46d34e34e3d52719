"""``/v1/responses``: answers that can be continued, looked up and, while they are made in the background, cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from msgspec.structs import replace

from headrace.api.answers import Answerer
from headrace.api.callers import caller_of
from headrace.api.exchange import read_json, respond_json
from headrace.api.hosting import Models
from headrace.api.ports import Message, Receive, Scope, Send
from headrace.api.routes import Route
from headrace.api.settings import ServerSettings
from headrace.api.stored import Stored, StoredResponses
from headrace.errors import InvalidRequest, QueueFull, ResponseNotFound, RouteNotFound, Unsupported
from headrace.wire.calls import Call
from headrace.wire.deltas import Head
from headrace.wire.dialects import Dialect
from headrace.wire.fields import Fields, shown
from headrace.wire.limits import MAX_NAME_CHARS
from headrace.wire.responses import Keep, error_object, response_json, responses
from headrace.wire.responses_requests import history, input_items

MAX_BACKGROUND = 64
"""Calls of one owner that may run without anybody waiting for them."""


def response_routes(models: Models, settings: ServerSettings) -> tuple[Route, ...]:
    """All routes of ``/v1/responses``."""
    handler = Responses(models, settings)
    return (
        Route("POST", "/v1/responses", handler.create),
        Route("GET", "/v1/responses/{id}", handler.look_up),
        Route("POST", "/v1/responses/{id}", handler.cancel),
        Route("DELETE", "/v1/responses/{id}", handler.delete),
    )


class Responses:
    """The routes, and what they keep."""

    def __init__(self, models: Models, settings: ServerSettings) -> None:
        self._models = models
        self._settings = settings
        self._stored = StoredResponses(settings.max_stored_bytes)
        self._running: dict[tuple[str, str], Background] = {}

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call; with ``background`` its answer is the response as it stands when the model begins with it."""
        arrival, settings, owner = time.monotonic(), self._settings, _owner(scope)
        with self._models.preparing():
            body: Mapping[str, Any] = await read_json(scope, receive, settings)
        fields = Fields(body)
        store, background = fields.boolean("store", True), fields.boolean("background")
        if (previous := fields.text("previous_response_id", MAX_NAME_CHARS)) is not None:
            before = self._stored.get(owner, previous)
            if before is None:
                raise InvalidRequest(f"Previous response with id {shown(previous)} not found.", "previous_response_id")
            body = history([*before.items, *before.response["output"]], body)
        items = input_items(body.get("input"))

        def keep(response: dict[str, Any]) -> None:
            if store and not self._stored.put(owner, response, items):
                response["store"] = False  # what is said to be stored is

        if background:
            await self._in_background(Background(keep), body, arrival, scope, send, store)
            return
        dialect = responses(keep)
        await Answerer(dialect, self._models, settings).answer(body, arrival, scope, receive, send)

    async def _in_background(
        self, work: Background, body: Mapping[str, Any], arrival: float, scope: Scope, send: Send, store: bool
    ) -> None:
        owner = _owner(scope)
        if not store:
            raise InvalidRequest("background needs store: the answer could not be found otherwise", "background")
        if Fields(body).boolean("stream"):
            raise Unsupported("background cannot be combined with stream: ask for the response by its id", "background")
        if sum(key[0] == owner for key in self._running) >= MAX_BACKGROUND:
            raise QueueFull(f"{MAX_BACKGROUND} background responses are running; try again when one has ended")
        answerer = Answerer(work.dialect, self._models, self._settings)
        quiet = {**scope, "extensions": {}}
        task = asyncio.create_task(answerer.answer(body, arrival, quiet, work.receive, work.send))
        await asyncio.wait((task, work.begun), return_when=asyncio.FIRST_COMPLETED)
        if not work.begun.done():
            task.result()  # raises what kept it from beginning
            return
        response = work.begun.result()
        if task.done() and task.exception() is not None:  # the engine did not take it: so does its caller hear
            self._stored.drop(owner, response["id"])
            task.result()
        key = owner, response["id"]
        self._running[key] = work
        task.add_done_callback(lambda done: self._ended(key, work, done))
        await respond_json(send, response)

    def _ended(self, key: tuple[str, str], work: Background, task: asyncio.Task[None]) -> None:
        self._running.pop(key, None)
        error = task.exception() if not task.cancelled() else asyncio.CancelledError()
        if isinstance(error, Exception):
            work.finish("failed", error_object(error))
        elif not work.finished:
            work.finish("cancelled")

    async def look_up(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A response that was stored; below it ``/input_items``."""
        response_id, _, rest = scope["headrace.rest"].partition("/")
        stored = self._find(scope, response_id)
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        if rest == "input_items":
            await respond_json(send, _items_json(stored))
            return
        if rest:
            raise RouteNotFound("there is nothing at this path")
        if query.get("stream", "false") != "false" or "starting_after" in query:
            raise Unsupported("stored responses cannot be streamed again; get them whole", "stream")
        await respond_json(send, stored.response)

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """End a response that is made in the background. One that has ended stays as it is."""
        response_id, _, rest = scope["headrace.rest"].partition("/")
        if rest != "cancel":
            raise RouteNotFound("there is nothing at this path")
        stored = self._find(scope, response_id)
        if not stored.response["background"]:
            raise InvalidRequest("only responses that are made in the background can be cancelled", "response_id")
        work = self._running.get((_owner(scope), response_id))
        if work is not None:
            work.finish("cancelled")
            work.gone.set()
        await respond_json(send, self._find(scope, response_id).response)

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forget a response; one that is still made is not made any further."""
        response_id, owner = scope["headrace.rest"], _owner(scope)
        self._find(scope, response_id)
        work = self._running.get((owner, response_id))
        if work is not None:
            work.finished = True
            work.gone.set()
        self._stored.drop(owner, response_id)
        await respond_json(send, {"id": response_id, "object": "response", "deleted": True})

    def _find(self, scope: Scope, response_id: str) -> Stored:
        stored = self._stored.get(_owner(scope), response_id)
        if stored is None:
            raise ResponseNotFound(f"Response with id {shown(response_id)} not found.", "response_id")
        return stored


class Background:
    """A call that nobody waits for: answered as any other, to a client that listens until it is `gone`."""

    def __init__(self, keep: Keep) -> None:
        self.begun: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        """The response when the call has been accepted."""
        self.gone = asyncio.Event()
        self.finished = False
        self._keep = keep

    @property
    def dialect(self) -> Dialect:
        """The dialect that reports here."""
        plain = responses(self._complete)

        def writer(head: Head, call: Call) -> Any:
            response = response_json(head, call, "in_progress", [])
            self._keep(response)
            self.begun.set_result(response)
            return plain.writer(head, call)

        return replace(plain, writer=writer)

    def _complete(self, response: dict[str, Any]) -> None:
        if not self.finished:
            self.finished = True
            self._keep(response)

    def finish(self, status: str, error: Any = None) -> None:
        """It ends without an answer."""
        if not self.finished:
            self.finished = True
            self._keep({**self.begun.result(), "status": status, "error": error})

    async def receive(self) -> Message:
        """Nothing, until the client is told to go."""
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """The answer is stored, not sent."""


def _items_json(stored: Stored) -> dict[str, Any]:
    items = [item if isinstance(item, dict) else {} for item in stored.items]
    ids = [item.get("id") for item in items]
    return {
        "object": "list",
        "data": items,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": False,
    }


def _owner(scope: Scope) -> str:
    """Whose responses these are: the key's tenant, or everybody's where no keys are asked for."""
    client = caller_of(scope).client
    return client if client.startswith("key:") else ""
