"""What Python does for one token and for one request, counted in calls: a number that no busy machine can change.

Seconds cannot be tested in CI; calls can, and each of them costs 30 to 100 ns. If a change is worth its price, raise
the budget in the same commit and say why.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from headrace.api.admission import admit
from headrace.api.callers import ANYONE
from headrace.api.choice import Choice
from headrace.api.connection import write_chunk
from headrace.api.desk import Desk
from headrace.api.ports import Message
from headrace.api.reply import Reply
from headrace.api.settings import ServerSettings
from headrace.engine.engine import Engine
from headrace.kvcache.cache import KVCache
from headrace.metrics import Recorder
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.scheduler import Scheduler
from headrace.types import (
    FinishReason,
    MemoryItem,
    Plan,
    Request,
    RowResult,
    RowSampling,
    StepResult,
    TokenEvent,
    TokenLogprobs,
)
from headrace.wire import anthropic, ollama, tgi
from headrace.wire.deltas import Head
from headrace.wire.dialects import CHAT, COMPLETIONS, Dialect
from headrace.wire.responses import responses
from tests.api.fakes import EOS, FakeEngine, app_of, served

TOKEN_BUDGET = 60
"""Calls for one token of a greedy stream. Half of them are ``len`` and other C functions."""
REQUEST_BUDGET = 725
"""Calls for one request with one token, the template and the tokenizer left out. A dozen of them are the lease of its
model and who is calling."""
STREAMS = 64
STEPS = 32
"""Two blocks' worth, so that what happens once a block is in the average."""


class Calls:
    """How many calls of Python and of C functions were made while it counted."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.made += 1

    @contextmanager
    def counted(self) -> Iterator[None]:
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


class InstantBackend:
    """Says "x" at once, whatever it is asked."""

    vocab_size = 257
    kv_block_bytes = 64

    def memory(self) -> tuple[MemoryItem, ...]:
        return ()

    def allocate_kv(self, num_blocks: int) -> None:
        pass

    def close(self) -> None:
        pass

    def run(self, plan: Plan) -> StepResult:
        return StepResult([self._says(row.sampling) for row in plan.rows])

    def _says(self, sampling: RowSampling | None) -> RowResult:
        if sampling is None:
            return RowResult()
        return RowResult(ord("x"), None if sampling.logprobs is None else TokenLogprobs(ord("x"), -0.125, 1))


class Unthreaded:
    """An engine whose loop the test turns by hand."""

    def __init__(self) -> None:
        scheduler = Scheduler(SchedulerConfig(2 * STREAMS, 8192, 512), KVCache(64 * STREAMS), random.Random(0))
        self.engine = Engine(scheduler, InstantBackend(), Recorder("tiny", 512))

    def start(self, listener: Callable[[Sequence[TokenEvent]], None]) -> None:
        self.engine._listener = listener

    def submit(self, request: Request) -> None:
        self.engine.submit(request)

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        self.engine.abort(request_id, index, reason)

    def health(self) -> Any:
        return self.engine.health()

    def stats(self) -> Any:
        return self.engine.stats()


async def open_stream(
    desk: Desk, number: int, sink: list[bytes], body: dict[str, Any], dialect: Dialect = CHAT
) -> None:
    """A stream past its first write, as `headrace.api.answers` would have it."""
    model, call_id = served(), f"chatcmpl-{number}"
    call = dialect.parse({"stream": True, **body}, model.limits, {})
    (admitted,) = await admit(call, model, call_id, ANYONE, time.monotonic(), 100.0)
    request, head = admitted.request, Head(call_id, 1, "tiny", "f")
    choices = [Choice(0, model.words, request.sampling, call.style, request.prompt)]
    document = partial(dialect.document, head, call)
    reply = Reply([request], choices, call.style, dialect.writer(head, call), document)
    cycle: Any = SimpleNamespace(
        flow=SimpleNamespace(write_paused=False),
        transport=SimpleNamespace(write=sink.append),
        disconnected=False,
        response_complete=False,
        chunked_encoding=True,
    )
    reply.write = partial(write_chunk, cycle)
    desk.submit(reply)


MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
LONG, COLD = 300, {"temperature": 0}
OLLAMA: dict[str, Any] = {"model": "tiny", "options": {"num_predict": LONG, **COLD}}


@pytest.mark.parametrize(
    ("dialect", "body", "budget"),
    [
        (CHAT, {**MESSAGES, "max_tokens": LONG, **COLD}, TOKEN_BUDGET),
        (CHAT, {**MESSAGES, "max_tokens": LONG, "temperature": 0.8, "seed": 1}, TOKEN_BUDGET + 4),
        (COMPLETIONS, {"prompt": "hi", "max_tokens": LONG, **COLD}, TOKEN_BUDGET),
        (responses(), {"input": "hi", "max_output_tokens": LONG, **COLD}, TOKEN_BUDGET + 12),
        (anthropic.MESSAGES, {"model": "tiny", **MESSAGES, "max_tokens": LONG, **COLD}, TOKEN_BUDGET),
        (tgi.GENERATE_STREAM, {"inputs": "hi", "parameters": {"max_new_tokens": LONG}}, TOKEN_BUDGET + 20),
        (ollama.GENERATE, {"prompt": "hi", **OLLAMA}, TOKEN_BUDGET + 2),
        (ollama.CHAT, {**MESSAGES, **OLLAMA}, TOKEN_BUDGET + 2),
    ],
    ids=["chat", "sampled", "completions", "responses", "anthropic", "tgi", "ollama-generate", "ollama-chat"],
)
def test_calls_for_one_token(dialect: Dialect, body: dict[str, Any], budget: float) -> None:
    """Schedule, commit, text, chunk, write: 64 streams in lock-step. TGI's have a logprob for each token."""

    async def test() -> None:
        port, sink, calls = Unthreaded(), list[bytes](), Calls()
        desk = Desk(port, Recorder("tiny", 512), ServerSettings())
        desk.start()
        port.engine._listener = desk.deliver
        for number in range(STREAMS):
            await open_stream(desk, number, sink, body, dialect)
        for _ in range(48):  # prompts, paced, and the first tokens
            port.engine._turn()
        sink.clear()
        with calls.counted():
            for _ in range(STEPS):
                port.engine._turn()
        assert len(sink) == STREAMS * STEPS, "one write for each stream and step"
        assert all(b'"x"' in written for written in sink), "and each has its token's text"
        each = calls.made / len(sink)
        assert each <= budget, (
            f"a token costs {each:.1f} calls, the budget is {budget}: find the new ones with cProfile on this test,"
            " and do per step, per block or per request what needs not be done per token"
        )
        assert each >= 0.6 * budget, (
            f"a token costs {each:.1f} calls: lower the budget of {budget}, so that it stays so"
        )

    asyncio.run(test())


def test_calls_for_one_request() -> None:
    """From a parsed head to the end of a stream of one token, through every guard."""
    engine, calls, sent = FakeEngine(script=lambda request, index: [EOS]), Calls(), list[Message]()
    app = app_of(engine)
    body = json.dumps({"messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 4}).encode()
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "raw_path": b"/v1/chat/completions",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }

    async def call() -> None:
        arriving = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            if not arriving:
                await asyncio.Event().wait()
            return arriving.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        task = asyncio.create_task(app({**scope}, receive, send))
        while not engine.running:
            await asyncio.sleep(0)
        engine.step()
        await task

    async def test() -> None:
        app.models.start()
        await call()  # whatever is done once
        sent.clear()
        with calls.counted():
            await call()

    asyncio.run(test())
    assert sent[-1]["body"].endswith(b"data: [DONE]\n\n")
    assert calls.made <= REQUEST_BUDGET, (
        f"a request costs {calls.made} calls, the budget is {REQUEST_BUDGET}: find the new ones with cProfile on this"
        " test, and do once for the server what needs not be done for each request"
    )
    assert calls.made >= 0.6 * REQUEST_BUDGET, f"a request costs {calls.made} calls: lower the budget"
