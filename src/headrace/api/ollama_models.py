"""Ollama's routes around models: which there are, which are loaded, what is known of one; pull, copy and delete."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from headrace import __version__
from headrace.api.cards import Card, unknown
from headrace.api.exchange import ClientGone, read_json, respond, respond_json
from headrace.api.hosting import Models, Slot
from headrace.api.ports import Receive, Scope, Send
from headrace.api.residents import on_thread
from headrace.api.settings import ServerSettings
from headrace.api.shelf import Shelf
from headrace.errors import Forbidden, HeadraceError, ModelNotFound
from headrace.wire.chunks import to_json
from headrace.wire.ollama import ERRORS, LINES
from headrace.wire.ollama_requests import copied_names, deleted_model, parse_pull, shown_model

log = logging.getLogger("headrace.api")

API_VERSION = "0.13.0"
"""The version of Ollama whose routes these are: clients look at it before they use what is newer."""
_FOREVER = timedelta(days=365 * 100)
_PROGRESS_EVERY = 0.1
"""Seconds between two lines of progress."""


class ModelRoutes:
    """``shelf`` is None where clients may not change what is on the disk."""

    def __init__(self, models: Models, settings: ServerSettings, shelf: Shelf | None) -> None:
        self._models = models
        self._settings = settings
        self._shelf = shelf

    async def version(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/api/version``."""
        await respond_json(send, {"version": f"{API_VERSION}+headrace.{__version__}"})

    async def tags(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/api/tags``: every model that may be asked for, and whose files can be read."""
        listed = []
        for slot in self._models.slots:
            card = await _readable(slot)
            if card is None:
                continue
            listed.append(
                {
                    "name": slot.name,
                    "model": slot.name,
                    "modified_at": _moment(card.modified or slot.created),
                    "size": card.bytes,
                    "digest": card.digest,
                    "details": _details(card),
                    "capabilities": list(card.capabilities),
                }
            )
        await respond_json(send, {"models": listed})

    async def ps(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/api/ps``: every model that is in memory."""
        loaded = [slot for slot in self._models.slots if slot.seat.loaded is not None]
        await respond_json(send, {"models": [await self._running(slot) for slot in loaded]})

    async def _running(self, slot: Slot) -> dict[str, Any]:
        seat, card = slot.seat, await _readable(slot) or unknown()
        loaded = seat.loaded
        expires = seat.resident.expires
        left = _FOREVER if expires is None else timedelta(seconds=expires - time.monotonic())
        return {
            "name": slot.name,
            "model": slot.name,
            "size": (loaded.held if loaded is not None else 0) or card.bytes,
            "digest": card.digest,
            "details": _details(card),
            "expires_at": _text(datetime.now(UTC) + left),
            "size_vram": 0,
            "context_length": slot.max_model_len or 0,
        }

    async def show(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/api/show``: what is known of one model."""
        body = await self._body(scope, receive)
        slot = self._models.find(shown_model(body))
        card = await _card(slot)
        await respond_json(
            send,
            {
                "license": "",
                "modelfile": f"# the model is {slot.name}\n",
                "parameters": "",
                "template": card.template,
                "details": _details(card),
                "model_info": dict(card.info),
                "capabilities": list(card.capabilities),
                "modified_at": _moment(card.modified or slot.created),
            },
        )

    async def copy(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/api/copy``: a second name for a model."""
        body = await self._body(scope, receive)
        shelf, (source, destination) = self._writable(), copied_names(body)
        self._models.add(await on_thread(lambda: shelf.copy(source, destination)))
        await respond(send, 200, b"", ())

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/api/delete``: a model leaves the disk."""
        body = await self._body(scope, receive)
        shelf, name = self._writable(), deleted_model(body)
        await on_thread(lambda: shelf.remove(name))
        with contextlib.suppress(ModelNotFound):
            self._models.remove(name)
        await respond(send, 200, b"", ())

    async def pull(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/api/pull``: fetch a model, with a line for every step unless ``stream`` is false. A client that leaves
        ends it; the next pull goes on with what `Store.pull` kept."""
        body = await self._body(scope, receive)
        shelf, (name, stream) = self._writable(), parse_pull(body)
        pull = _Pull(shelf, self._models, name)
        watcher = asyncio.create_task(_until_gone(receive, pull))
        try:
            if stream:
                await _stream(pull, send)
            else:
                async for _ in pull.lines():
                    pass
                await respond_json(send, {"status": "success"})
        finally:
            watcher.cancel()

    async def _body(self, scope: Scope, receive: Receive) -> Mapping[str, Any]:
        with self._models.preparing():
            return await read_json(scope, receive, self._settings, any_media_type=True)

    def _writable(self) -> Shelf:
        if self._shelf is None:
            raise Forbidden("clients may not change this server's models; start it with --manage-models to let them")
        return self._shelf


class _Pull:
    """One pull: its work on a thread, its lines on the loop."""

    def __init__(self, shelf: Shelf, models: Models, name: str) -> None:
        self._shelf = shelf
        self._models = models
        self._name = name
        self._latest = (0, 0)
        self.gone = False

    def _progress(self, done: int, total: int) -> None:
        """On the thread."""
        if self.gone:
            raise ClientGone
        self._latest = (done, total)

    async def lines(self) -> Any:
        """What to tell, line by line; raises what the work raises."""
        work = asyncio.ensure_future(on_thread(lambda: self._shelf.pull(self._name, self._progress)))
        yield {"status": "pulling manifest"}
        told = (0, 0)
        while not work.done():
            await asyncio.wait([work], timeout=_PROGRESS_EVERY)
            if self._latest != told:
                told = done, total = self._latest
                yield {"status": f"pulling {self._name}", "digest": self._name, "total": total, "completed": done}
        model = await work
        if model is not None:
            self._models.add(model)
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
        yield {"status": "success"}


async def _stream(pull: _Pull, send: Send) -> None:
    """Errors before the first line of progress are a status, later ones a line."""
    begun = False
    try:
        async for line in pull.lines():
            if not begun:
                await send({"type": "http.response.start", "status": 200, "headers": LINES})
                begun = True
            await send({"type": "http.response.body", "body": f"{to_json(line)}\n".encode(), "more_body": True})
        last = b""
    except ClientGone:
        return
    except Exception as error:
        if not begun or not isinstance(error, HeadraceError):
            raise
        last = ERRORS.event(error)
    await send({"type": "http.response.body", "body": last, "more_body": False})


async def _until_gone(receive: Receive, pull: _Pull) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
        pull.gone = True


async def _card(slot: Slot) -> Card:
    return await asyncio.to_thread(slot.seat.version.card)


async def _readable(slot: Slot) -> Card | None:
    """None where its files cannot be read any more, which the log tells: no reason to list none of the others."""
    try:
        return await _card(slot)
    except (HeadraceError, OSError) as error:
        log.warning("%s: its files cannot be read: %s", slot.name, error)
        return None


def _details(card: Card) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": card.format,
        "family": card.family,
        "families": [card.family] if card.family else [],
        "parameter_size": _millions(card.parameters),
        "quantization_level": card.quantization,
    }


def _millions(count: int) -> str:
    if not count:
        return ""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


def _moment(seconds: float) -> str:
    return _text(datetime.fromtimestamp(seconds, UTC))


def _text(moment: datetime) -> str:
    return f"{moment.isoformat()[:-6]}Z"
