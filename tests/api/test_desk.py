"""The desk and its replies on an event loop of their own, the clock in the test's hand."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import pytest

from headrace.api.admission import admit
from headrace.api.answers import whole_answer
from headrace.api.callers import ANYONE
from headrace.api.choice import Choice, VectorChoice
from headrace.api.desk import Desk
from headrace.api.lifecycle import Lifecycle, Phase, drain
from headrace.api.reply import Reply
from headrace.api.settings import ServerSettings
from headrace.errors import DeadlineExceeded, Draining, EngineError, InvalidRequest, QueueFull
from headrace.metrics import Recorder
from headrace.types import FinishReason, TokenEvent
from headrace.wire.chunks import CompletionWriter, NoStream
from headrace.wire.deltas import Delta, Head, Usage
from headrace.wire.fold import Choice as Folded
from headrace.wire.fold import completion_document
from headrace.wire.openai_requests import parse_chat, parse_completion
from tests.api.fakes import EOS, ByteWords, FakeEngine, served

Test = Callable[[], Coroutine[Any, Any, None]]


def run(test: Test) -> None:
    asyncio.run(test())


def desk_of(engine: FakeEngine, **settings: Any) -> Desk:
    return Desk(engine, Recorder("tiny", 512), ServerSettings(**settings))


async def reply_of(body: dict[str, Any], call_id: str = "cmpl-1") -> Reply:
    model = served()
    call = parse_completion(body, model.limits, {})
    admitted = await admit(call, model, call_id, ANYONE, time.monotonic(), 100.0)
    requests = [each.request for each in admitted]
    choices = [
        Choice(i * call.n + k, model.words, each.sampling, call.style, each.prompt)
        for i, each in enumerate(requests)
        for k in range(call.n)
    ]
    head = Head(call_id, 1, "tiny", "f")
    document = partial(completion_document, head, call.style)
    return Reply(requests, choices, call.style, CompletionWriter(head, call.style), document)


def test_events_reach_their_choice_and_strangers_are_ignored() -> None:
    async def test() -> None:
        engine = FakeEngine(script=lambda r, k: [*bytes(r.prompt), 48 + k, EOS])
        desk = desk_of(engine)
        desk.start()
        reply = await reply_of({"prompt": ["a", "b"], "n": 2})
        desk.submit(reply)
        desk.deliver([TokenEvent("nobody", 0, (65,))])
        for _ in range(3):
            engine.step()
        await asyncio.sleep(0)
        await reply.changed()
        assert reply.complete
        document, _ = reply.document()
        assert [c["text"] for c in document["choices"]] == ["a0", "a1", "b0", "b1"]
        assert document["usage"]["prompt_tokens_details"]["cached_tokens"] == 8
        desk.close(reply)
        desk.close(reply)
        assert (desk.open, engine.aborted) == (0, [])

    run(test)


def test_tick_enforces_a_deadline_that_the_engine_missed() -> None:
    async def test() -> None:
        engine = FakeEngine()
        desk = desk_of(engine)
        desk.start()
        before = time.monotonic()
        reply = await reply_of({"prompt": "a", "timeout": 5})
        deadline = reply.requests[0].deadline
        assert deadline is not None
        assert before + 5 <= deadline <= time.monotonic() + 5
        desk.submit(reply)
        desk.tick(deadline + 1)
        assert reply.error is None
        desk.tick(deadline + 3)
        assert isinstance(reply.error, DeadlineExceeded)
        assert not engine.running

    run(test)


def test_the_first_error_counts_and_none_does_after_the_end() -> None:
    async def test() -> None:
        reply = await reply_of({"prompt": "a"})
        with pytest.raises(EngineError, match="NaN"):
            reply.on_event(0, TokenEvent("cmpl-1-0", 0, finish=FinishReason.ERROR, error="NaN"))
        reply.fail(EngineError("first"))
        reply.fail(EngineError("second"))
        assert str(reply.error) == "first"
        done = await reply_of({"prompt": "a"})
        done.on_event(0, TokenEvent("cmpl-1-0", 0, (65,), finish=FinishReason.LENGTH))
        done.fail(EngineError("late"))
        assert done.error is None
        assert done.on_event(0, TokenEvent("cmpl-1-0", 0, (66,))).tokens == 1, "what comes after the end is nothing"

    run(test)


def test_submit_takes_back_what_went_in() -> None:
    async def test() -> None:
        engine = FakeEngine(max_queued=1)
        desk = desk_of(engine)
        desk.start()
        with pytest.raises(QueueFull):
            desk.submit(await reply_of({"prompt": ["a", "b"]}))
        assert (desk.open, engine.running) == (0, [])

    run(test)


def test_drain_walks_through_its_phases() -> None:
    async def test() -> None:
        engine = FakeEngine()
        desk, seen = desk_of(engine), list[tuple[Phase, bool, bool, bool]]()
        desk.start()
        reply = await reply_of({"prompt": "a"})
        desk.submit(reply)

        class Watched(Lifecycle):
            def __setattr__(self, name: str, value: Any) -> None:
                super().__setattr__(name, value)
                seen.append((self.phase, self.ready, self.admitting, reply.error is None))

        await drain(Watched(), desk, 0.01, 0.02, pause=0.005)
        assert seen == [
            (Phase.READY, True, True, True),
            (Phase.LAME_DUCK, False, True, True),
            (Phase.DRAINING, False, False, True),
            (Phase.STOPPED, False, False, False),
        ]
        assert isinstance(reply.error, Draining)
        assert not engine.running

    run(test)


def test_long_bad_words_and_long_embeddings_leave_the_event_loop() -> None:
    """As long prompts do: a call of 4 MB must not hold up the streams of all others."""

    async def test() -> None:
        seen: list[bool] = []

        class Watched(ByteWords):
            def encode(self, text: str, add_special: bool) -> Sequence[int]:
                if text != "hi":
                    seen.append(threading.current_thread() is loop)
                return super().encode(text, add_special)

        def document(choices: list[Folded], usage: Usage) -> dict[str, int]:
            seen.append(threading.current_thread() is loop)
            return {"vectors": len(choices)}

        loop, model = threading.current_thread(), served(words=Watched())
        for words in (["a"], ["a" * 60] * 40):
            call = parse_completion({"prompt": "hi", "bad_words": words}, model.limits, {})
            (one,) = await admit(call, model, "id", ANYONE, 10.0, None)
        assert seen == [True] * 2 + [False] * 80
        seen.clear()
        for width in (8, 1024):
            writer = NoStream(Head("embd-1", 1, "tiny", "f"), call)
            made = Reply([one.request], [VectorChoice(0), VectorChoice(1)], call.style, writer, document)
            for index, folded in enumerate(made._folded):
                folded.add(Delta(index, embedding=(0.5,) * width))
            assert (await whole_answer(made))[0] == b'{"vectors":2}'
        assert seen == [True, False]

    run(test)


def test_admission() -> None:
    async def test() -> None:
        model = served()

        async def admitted(body: dict[str, Any], chat: bool = False, limit: float | None = None) -> Any:
            call = (parse_chat if chat else parse_completion)(body, model.limits, {})
            return await admit(call, model, "id", ANYONE, 10.0, limit)

        (one,) = await admitted({"prompt": "ab", "bad_words": ["x", "yz"], "echo": True, "logprobs": 2}, limit=5.0)
        sampling = one.request.sampling
        assert one.request.prompt == (97, 98)
        assert one.echo == "ab"
        assert one.request.deadline == 15.0
        assert sampling.bad_words == ((120,), (121, 122))
        assert sampling.eos_token_ids == {EOS}
        assert (sampling.logprobs, sampling.prompt_logprobs) == (2, 2)
        (one,) = await admitted({"prompt": "ab", "timeout": 3}, limit=None)
        assert one.request.deadline == 13.0
        assert (await admitted({"prompt": [[97], [98]], "echo": True}))[1].echo == "b"
        (long,) = await admitted({"messages": [{"role": "user", "content": "a" * 400}]}, chat=True)
        assert long.request.sampling.max_tokens == 512 - 406
        for body, match in (
            ({"prompt": "a" * 1000}, "1000 tokens.*512"),
            ({"prompt": ["a", "a" * (512 * model.words.longest_token + 1)]}, "characters, more than any 512 tokens"),
            ({"prompt": "a" * 512}, "512 tokens.*512"),
            ({"prompt": ["a", ""]}, "no tokens"),
            ({"prompt": "a" * 510, "max_tokens": 3}, "lower max_tokens to 2"),
            ({"prompt": "a" * 510, "max_tokens": 512, "min_tokens": 5}, "512 more"),
        ):
            with pytest.raises(InvalidRequest, match=match):
                await admitted(body)
        with pytest.raises(InvalidRequest, match="min_tokens is 400, but there is room"):
            await admitted({"messages": [{"role": "user", "content": "a" * 200}], "min_tokens": 400}, chat=True)
        refused = {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"refuse": True}}
        with pytest.raises(InvalidRequest, match="refuses"):
            await admitted(refused, chat=True)

    run(test)
