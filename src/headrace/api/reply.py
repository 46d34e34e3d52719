"""One call between the engine's events and its caller's socket.

Lives on the event loop alone. Events come in by `on_event`; in the middle of a stream `flush` writes what those of a
step have made straight to the connection. At the beginning, at the end and while the reader is behind, the route's
handler does it: it waits in `changed` and takes everything that came since it last looked, in one piece, so that a
slow socket makes bigger writes and not more of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from headrace.api.choice import Choice, VectorChoice
from headrace.errors import DeadlineExceeded, EngineError, HeadraceError, Unsatisfiable
from headrace.types import Cause, FinishReason, Request, TokenEvent
from headrace.wire.calls import AnswerStyle
from headrace.wire.chunks import ChunkWriter
from headrace.wire.deltas import Delta, Timing, Usage
from headrace.wire.failures import OPENAI, ErrorShape
from headrace.wire.fold import Choice as Folded

_NO_USAGE = Usage()


class Reply:
    """``requests[i]``'s sequence ``k`` is choice ``i * n + k``. ``held_by`` is the field that holds the answer to
    something, for errors."""

    def __init__(
        self,
        requests: list[Request],
        choices: list[Choice] | list[VectorChoice],
        style: AnswerStyle,
        writer: ChunkWriter,
        document: Callable[[list[Folded], Usage], Any],
        errors: ErrorShape = OPENAI,
        headers: Callable[[Usage], Sequence[tuple[bytes, bytes]]] = lambda usage: (),
        spend: Callable[[int], None] | None = None,
        held_by: str | None = None,
    ) -> None:
        self.requests = requests
        self.choices = choices
        self.style = style
        self.gone = False
        """Nobody is there to answer any more."""
        self.error: Exception | None = None
        self.blocked_since: float | None = None
        """When the send that is waiting for its reader began (``time.monotonic()``)."""
        self.disconnect: Callable[[], None] | None = None
        """Cuts the connection at once, unsent bytes and all."""
        self.write: Callable[[bytes], bool] | None = None
        """Writes a piece of the stream at once, or says False; given when the response has begun."""
        self.prepared = 0.0
        """When it went to the engine (``time.monotonic()``)."""
        self.load_time = 0.0
        """Seconds for which it waited for its model to be loaded."""
        self.spend = spend
        """Where its tokens are told as they come; None if nobody counts them."""
        self._spent = 0
        self._held_by = held_by
        self._writer = writer
        self._document = document
        self._errors = errors
        self._headers = headers
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._tell_usage = True
        """With the first delta, and with all of them if that was asked for."""
        self._folded = [Folded() for _ in choices]
        self._prompt_tokens = sum(len(request.prompt) for request in requests)
        self._completion_tokens = 0
        self._reasoning_tokens = 0
        self._cached_tokens = 0
        self._cached_known: set[str] = set()
        self._open = len(choices)
        self._queue_time: float | None = None
        self._first = 0.0
        self._last = 0.0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def complete(self) -> bool:
        """Every choice has its finish."""
        return self._open == 0

    @property
    def buffered(self) -> int:
        """Bytes made and not yet taken."""
        return self._buffered

    def on_event(self, request: int, event: TokenEvent) -> Choice | VectorChoice:
        """An event of the sequence ``event.index`` of ``requests[request]``; returns its choice.

        Raises:
            DeadlineExceeded, Unsatisfiable, EngineError: the event says that the engine gave up on it.
        """
        choice = self.choices[request * self.requests[request].n + event.index]
        if event.cached_tokens is not None:
            self._begin(event, event.cached_tokens)
        if event.finish is FinishReason.ERROR:
            raise self._failure(event)
        before, reasoned = choice.tokens, choice.reasoning_tokens
        deltas = choice.on_event(event)
        self._completion_tokens += choice.tokens - before
        self._reasoning_tokens += choice.reasoning_tokens - reasoned
        for delta in deltas:
            self._add(delta)
        return choice

    def _failure(self, event: TokenEvent) -> HeadraceError:
        if event.cause is Cause.DEADLINE:
            return DeadlineExceeded("the request's deadline passed before it finished")
        error = event.error or "the request failed in the engine"
        return Unsatisfiable(error, self._held_by) if event.cause is Cause.REQUEST else EngineError(error)

    def _begin(self, event: TokenEvent, cached_tokens: int) -> None:
        """A sequence's first event. Its prompt's tokens are counted once, although each of its sequences tells."""
        if event.request_id not in self._cached_known:
            self._cached_known.add(event.request_id)
            self._cached_tokens += cached_tokens
        if self._queue_time is None:
            self._queue_time, self._first = event.queue_time or 0.0, time.monotonic()

    def _add(self, delta: Delta) -> None:
        if delta.finish is not None:
            self._open -= 1
            self._last = time.monotonic()
        if self.style.stream:
            data = self._writer.delta(delta, self.usage() if self._tell_usage else _NO_USAGE)
            self._tell_usage = self.style.continuous_usage
            if data:
                self._buffer.append(data)
                self._buffered += len(data)
        else:
            self._folded[delta.index].add(delta)

    def usage(self) -> Usage:
        """The tokens of the call so far."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            reasoning_tokens=self._reasoning_tokens,
        )

    def _final_usage(self) -> Usage:
        """With the timing. The call's first request to begin and its first token stand for all of them."""
        arrival = self.requests[0].arrival
        validation = max(0.0, self.prepared - arrival)
        queue = max(0.0, (self._queue_time or 0.0) - validation)
        began = arrival + validation + queue
        timing = Timing(
            validation, queue, max(0.0, self._first - began), max(0.0, self._last - self._first), self.load_time
        )
        return replace(self.usage(), timing=timing)

    def settle(self) -> None:
        """Tell of the tokens since the last time."""
        if self.spend is not None:
            used = self._prompt_tokens + self._completion_tokens
            self.spend(used - self._spent)
            self._spent = used

    def fail(self, error: Exception) -> None:
        """The call ends with an error; the first one counts."""
        if self.error is None and not self.complete:
            self.error = error
        self.wake()

    def leave(self) -> None:
        """Nobody is there any more."""
        self.gone = True
        self.wake()

    def wake(self) -> None:
        """Let the handler look."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def flush(self) -> None:
        """Write what has come, if that is all there is to it; else let the handler do it.

        Bytes keep their order: as long as the handler's send is waiting, everything waits behind it.
        """
        if (
            self.write is None
            or self.blocked_since is not None
            or self.complete
            or self.error is not None
            or self.gone
            or (self._buffer and not self.write(b"".join(self._buffer)))
        ):
            self.wake()
        else:
            self._buffer.clear()
            self._buffered = 0

    async def changed(self) -> None:
        """Wait until there is something for the handler to do: to send, to fail, or to go."""
        while not (self._buffer or self.complete or self.error or self.gone):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def take(self) -> tuple[bytes, bool]:
        """What there is to send of the stream, and whether it is the last of it."""
        parts, self._buffer, self._buffered = self._buffer, [], 0
        over = True
        if self.error is not None:
            parts.append(self._errors.event(self.error))
        elif self.complete:
            parts.append(self._writer.end(self._final_usage()))
        else:
            over = False
        return b"".join(parts), over

    @property
    def numbers(self) -> int:
        """Of all embeddings in it."""
        return sum(len(choice.embedding) for choice in self._folded)

    def document(self) -> tuple[Any, Sequence[tuple[bytes, bytes]]]:
        """The whole answer, once it is complete, and the response headers that it brings."""
        usage = self._final_usage()
        return self._document(self._folded, usage), self._headers(usage)
