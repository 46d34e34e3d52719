"""Health that tells the truth: live is the heartbeat of the step loop, ready is whether a request would be taken."""

from __future__ import annotations

import asyncio

from headrace.api.exchange import respond, respond_json
from headrace.api.hosting import Models
from headrace.api.lifecycle import Lifecycle
from headrace.api.ports import ASGIApp, Receive, Scope, Send
from headrace.metrics import CONTENT_TYPE, Exposition, Recorder
from headrace.stats import EngineStats, Health


class HealthRoutes:
    """``/health/live``, ``/health/ready`` and both in ``/health``: 200 or 503, with the reason in the body."""

    def __init__(self, models: Models, lifecycle: Lifecycle) -> None:
        self._models = models
        self._lifecycle = lifecycle

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """503 only when the step loop has stopped turning, never for being busy."""
        health = self._health()
        await self._answer(send, health, health.live)

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """503 as soon as the server is told to stop, while it still serves."""
        health = self._health()
        await self._answer(send, health, health.live and health.ready and self._lifecycle.ready)

    async def both(self, scope: Scope, receive: Receive, send: Send) -> None:
        """200 when live and ready."""
        await self.ready(scope, receive, send)

    async def root(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/``: the words that Ollama's clients look for, and the status that TGI's do."""
        health = self._health()
        if health.live and health.ready and self._lifecycle.ready:
            await respond(send, 200, b"Ollama is running", [(b"content-type", b"text/plain; charset=utf-8")])
        else:
            await self._answer(send, health, False)

    def _health(self) -> Health:
        """Of all engines together: as bad as the worst."""
        found = [each.engine.health() for each in self._models.loaded]
        return Health(
            all(each.live for each in found),
            all(each.ready for each in found),
            "; ".join(each.detail for each in found if each.detail),
            max((each.heartbeat_age for each in found), default=0.0),
        )

    async def _answer(self, send: Send, health: Health, good: bool) -> None:
        document = {
            "status": "ok" if good else "unavailable",
            "live": health.live,
            "ready": health.live and health.ready and self._lifecycle.ready,
            "phase": self._lifecycle.phase.value,
            "detail": health.detail,
            "heartbeat_age_seconds": round(health.heartbeat_age, 3),
        }
        await respond_json(send, document, 200 if good else 503, [(b"cache-control", b"no-store")])


def _numbers(models: Models) -> list[tuple[Recorder, EngineStats]]:
    return [(recorder, EngineStats() if each is None else each.engine.stats()) for recorder, each in models.recorders]


def metrics_route(models: Models, exposition: Exposition) -> ASGIApp:
    """``/metrics`` in Prometheus' text format."""

    async def metrics(scope: Scope, receive: Receive, send: Send) -> None:
        # On a thread: 4 ms of work, the first time 50, that no stream should wait for.
        body = await asyncio.to_thread(exposition.render, _numbers(models))
        await respond(send, 200, body, [(b"content-type", CONTENT_TYPE.encode())])

    return metrics
