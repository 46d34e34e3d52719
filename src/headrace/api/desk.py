"""Where the engine's thread and the event loop meet.

The engine hands over all events of a step in one call; that is one wake-up of the loop per step, whatever the number of
streams. From there each event goes straight to its reply: no task and no queue per token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from headrace.api.ports import EnginePort
from headrace.api.reply import Reply
from headrace.api.settings import ServerSettings
from headrace.errors import DeadlineExceeded, HeadraceError
from headrace.metrics import Recorder
from headrace.types import FinishReason, TokenEvent

log = logging.getLogger("headrace.api")
_DEADLINE_SLACK = 2.0
"""Seconds after which a deadline is enforced here, should the engine not have done it."""


class Desk:
    """The open replies, and the only caller of ``engine.submit`` and ``engine.abort``."""

    def __init__(self, engine: EnginePort, recorder: Recorder, settings: ServerSettings) -> None:
        self._engine = engine
        self._recorder = recorder
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._by_request: dict[str, tuple[Reply, int]] = {}
        self._open: set[Reply] = set()
        self._watch: asyncio.Task[None] | None = None
        self._closed: HeadraceError | None = None

    @property
    def open(self) -> int:
        """Calls that are not answered yet."""
        return len(self._open)

    def start(self) -> None:
        """Start the engine, and look after open replies from now on; must be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._engine.start(self.listener)
        self._watch = asyncio.create_task(self._look_after())

    def stop(self) -> None:
        """Stop looking after replies. The engine is its owner's to stop."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def listener(self, events: Sequence[TokenEvent]) -> None:
        """All events of one step. Called on the engine's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.deliver, events)

    def deliver(self, events: Sequence[TokenEvent]) -> None:
        """Hand each event to its reply. What goes wrong in one reply ends that reply."""
        touched: dict[Reply, None] = {}
        for event in events:
            entry = self._by_request.get(event.request_id)
            if entry is None:
                continue
            reply, index = entry
            touched[reply] = None
            try:
                choice = reply.on_event(index, event)
            except HeadraceError as error:
                self._end(reply, error)
            except Exception as error:
                log.exception("request %s failed while its text was made", event.request_id)
                self._end(reply, error)
            else:
                if choice.stopped_by_text and event.finish is None:
                    self._engine.abort(event.request_id, event.index, FinishReason.STOP)
        for reply in touched:
            reply.flush()
            if reply.buffered > self._settings.max_stream_buffer:
                self._cut_off(reply)

    def submit(self, reply: Reply) -> None:
        """Put all requests of a call into the engine, or none.

        Raises:
            QueueFull, Draining, EngineDead, InvalidRequest: as the engine says; what was submitted is taken back.
            HeadraceError: the desk is closed, with what it was closed with.
        """
        if self._closed is not None:
            raise self._closed
        self._open.add(reply)
        try:
            for index, request in enumerate(reply.requests):
                self._by_request[request.id] = (reply, index)
                self._engine.submit(request)
            if reply.spend is not None:
                reply.settle()
        except HeadraceError as error:
            reply.spend = None  # nothing was done for it
            if error.status == 429:
                self._recorder.count("vllm:admission_rejections", 1, "max_num_queued_reqs")
            self.close(reply)
            raise

    def close(self, reply: Reply) -> None:
        """The call is over. What the engine still does for it stops."""
        if reply not in self._open:
            return
        self._open.discard(reply)
        if reply.spend is not None:
            reply.settle()
        for request in reply.requests:
            self._by_request.pop(request.id, None)
        if not reply.complete:
            self._abort(reply)
            if reply.gone:
                self._recorder.count("headrace:client_disconnects")
                log.info("request %s aborted: the client went away", reply.requests[0].id)

    def shut(self, error: HeadraceError) -> None:
        """Every open call ends with ``error``, and so does every later one."""
        self._closed = error
        for reply in list(self._open):
            self._end(reply, error)

    def tick(self, now: float) -> None:
        """Look after what no event would: stalled readers, and deadlines that the engine did not keep."""
        for reply in list(self._open):
            reply.settle()
            if reply.blocked_since is not None and now - reply.blocked_since > self._settings.stall_timeout:
                self._cut_off(reply)
            deadline = reply.requests[0].deadline
            if deadline is not None and now > deadline + _DEADLINE_SLACK:
                self._end(reply, DeadlineExceeded("the request's deadline passed before it finished"))

    async def _look_after(self, interval: float = 0.5) -> None:
        """Tick for ever, and tell how late the loop's timer ran."""
        while True:
            due = time.monotonic() + interval
            await asyncio.sleep(interval)
            now = time.monotonic()
            self._recorder.on_loop_lag(max(0.0, now - due))
            try:
                self.tick(now)
            except Exception:  # the next tick may do better; without any, readers could stall for ever
                log.exception("looking after open calls failed")

    def _end(self, reply: Reply, error: Exception) -> None:
        reply.fail(error)
        self._abort(reply)

    def _cut_off(self, reply: Reply) -> None:
        """Its reader is too slow: free what the engine holds for it, and the connection."""
        if reply.gone:
            return
        self._recorder.count("headrace:slow_readers")
        log.warning("request %s aborted: its reader stalled", reply.requests[0].id)
        self._abort(reply)
        reply.leave()
        if reply.disconnect is not None:
            reply.disconnect()

    def _abort(self, reply: Reply) -> None:
        for request in reply.requests:
            self._engine.abort(request.id)
