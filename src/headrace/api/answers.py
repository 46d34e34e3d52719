"""The text routes: a body goes in, an answer comes out, streamed or whole, from the same deltas."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from headrace.api.admission import Admitted, admit
from headrace.api.callers import caller_of
from headrace.api.choice import Choice, VectorChoice
from headrace.api.desk import Desk
from headrace.api.exchange import JSON, Header, read_json, respond
from headrace.api.hosting import Models
from headrace.api.ports import Receive, Scope, Send
from headrace.api.reply import Reply
from headrace.api.settings import Served, ServerSettings
from headrace.wire.calls import Call
from headrace.wire.chunks import to_json
from headrace.wire.deltas import Head
from headrace.wire.dialects import Dialect, asked_timeout

Write = Callable[[bytes], bool]
LONG_ANSWER = 2048
"""Numbers of embeddings from which writing them leaves the event loop for a thread: about a millisecond's work."""


class Answerer:
    """Answers the calls of one dialect."""

    def __init__(self, dialect: Dialect, models: Models, settings: ServerSettings) -> None:
        self._dialect = dialect
        self._models = models
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its body to its last byte."""
        arrival = time.monotonic()
        with self._models.preparing():
            body = await read_json(scope, receive, self._settings, any_media_type=self._dialect.any_media_type)
        await self.answer(body, arrival, scope, receive, send)

    async def answer(self, body: Mapping[str, Any], arrival: float, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its body, which came at ``arrival`` (monotonic seconds), to its last byte."""
        asked, timeouts = time.monotonic(), (asked_timeout(body), self._settings.request_timeout)
        deadline = min((arrival + limit for limit in timeouts if limit is not None), default=None)
        async with self._models.lease(self._dialect.model(body), deadline, receive) as hosted:
            got = time.monotonic()
            with self._models.preparing():
                reply = await self._prepare(hosted.served, body, scope, arrival)
            reply.load_time = got - asked
            await self._answer(hosted.desk, reply, scope, receive, send)

    async def _answer(self, desk: Desk, reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
        extensions = scope.get("extensions", {})
        reply.disconnect = extensions.get("headrace.disconnect")
        reply.prepared = time.monotonic()
        desk.submit(reply)
        watcher = asyncio.create_task(_watch(receive, reply))
        try:
            await _deliver(reply, send, extensions.get("headrace.write"), self._dialect.stream_headers)
        finally:
            watcher.cancel()
            desk.close(reply)

    async def _prepare(self, served: Served, body: Mapping[str, Any], scope: Scope, arrival: float) -> Reply:
        dialect = self._dialect
        call = dialect.parse(body, served.limits, served.sampling_defaults)
        call_id = dialect.id_prefix + secrets.token_hex(12)  # never the caller's: ids of two callers must differ
        caller = caller_of(scope)
        admitted = await admit(call, served, call_id, caller, arrival, self._settings.request_timeout)
        head = Head(call_id, int(time.time()), served.name_for(call.model), served.fingerprint)
        return Reply(
            [each.request for each in admitted],
            _choices(call, admitted, served),
            call.style,
            dialect.writer(head, call),
            partial(dialect.document, head, call),
            dialect.errors,
            partial(dialect.headers, call),
            caller.spend,
            admitted[0].held_by,
        )


def _choices(call: Call, admitted: list[Admitted], served: Served) -> list[Choice] | list[VectorChoice]:
    """All choices of a call, in the order of their index: prompt by prompt, ``n`` for each."""
    if call.embedding is not None:
        return [VectorChoice(index) for index in range(len(admitted))]
    return [
        Choice(
            index * call.n + k,
            served.words,
            each.request.sampling,
            call.style,
            each.request.prompt,
            content=call.content,
            echo=each.echo,
            prompt_logprobs=call.sampling.prompt_logprobs is not None,
            silent=call.max_tokens == 0,
        )
        for index, each in enumerate(admitted)
        for k in range(call.n)
    ]


async def _watch(receive: Receive, reply: Reply) -> None:
    """Tell the reply when its client goes away. Ends by itself when the response is complete."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reply.leave()


async def _deliver(reply: Reply, send: Send, write: Write | None, stream_headers: Sequence[Header]) -> None:
    """Send the answer. What fails before the first byte is raised, and becomes a status code."""
    await reply.changed()
    if reply.gone:
        return
    if reply.error is not None and not reply.buffered:
        raise reply.error
    if reply.style.stream:
        await _stream(reply, send, write, stream_headers)
    else:
        body, headers = await whole_answer(reply)
        await respond(send, 200, body, [*JSON, *headers])


async def whole_answer(reply: Reply) -> tuple[bytes, Sequence[Header]]:
    """The body of an answer that is not streamed, and its headers; a long one is written on a thread."""

    def write() -> tuple[bytes, Sequence[Header]]:
        document, headers = reply.document()
        return to_json(document).encode("utf-8", "replace"), headers

    return await asyncio.to_thread(write) if reply.numbers >= LONG_ANSWER else write()


async def _stream(reply: Reply, send: Send, write: Write | None, headers: Sequence[Header]) -> None:
    """One write for whatever has come since the last one; the body ends right after the dialect's last event.

    Between the first write and the last one the reply does without this function, as long as ``write`` does.
    """
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    reply.write = write
    over = False
    while not over:
        await reply.changed()
        if reply.gone:
            return
        data, over = reply.take()
        reply.blocked_since = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": not over})
        reply.blocked_since = None
