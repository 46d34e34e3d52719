"""The middle of a stream is written without the route's handler: the same bytes, the same order, the same brakes."""

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from headrace.api import ServerSettings
from headrace.api.connection import write_chunk
from headrace.types import FinishReason, TokenEvent
from tests.api.conftest import Start
from tests.api.fakes import FakeEngine, says, wait_until
from tests.api.raw import connect, post, read_all
from tests.api.test_desk import desk_of, reply_of
from tests.api.test_streams import events_of

CLOSE = "Connection: close\r\n"


def text_of(data: bytes) -> str:
    blocks = data.split(b"\n\n")
    return "".join(json.loads(block[6:])["choices"][0]["text"] for block in blocks if block.startswith(b"data: {"))


def cycle_of(**changes: Any) -> Any:
    flow = SimpleNamespace(write_paused=changes.pop("write_paused", False))
    state = {"disconnected": False, "response_complete": False, "chunked_encoding": True, **changes}
    written: list[bytes] = []
    return SimpleNamespace(flow=flow, transport=SimpleNamespace(write=written.append), written=written, **state)


def test_a_chunk_is_framed() -> None:
    cycle = cycle_of()
    assert write_chunk(cycle, b"x" * 26)
    assert cycle.written == [b"1a\r\n" + b"x" * 26 + b"\r\n"]


@pytest.mark.parametrize(
    "change",
    [{"write_paused": True}, {"disconnected": True}, {"response_complete": True}, {"chunked_encoding": None}],
    ids=lambda change: next(iter(change)),
)
def test_what_send_must_do_is_left_to_it(change: dict[str, Any]) -> None:
    cycle = cycle_of(**change)
    assert not write_chunk(cycle, b"x")
    assert cycle.written == []


def test_order_is_kept_whoever_writes() -> None:
    """The reader falls behind and catches up again and again; the handler's send takes its time."""

    async def test() -> None:
        engine, out = FakeEngine(), list[bytes]()
        desk = desk_of(engine)
        desk.start()
        reply = await reply_of({"prompt": "a", "stream": True, "max_tokens": 200})
        desk.submit(reply)
        steps = direct = 0

        def write(data: bytes) -> bool:
            nonlocal direct
            if steps % 5 == 3:
                return False
            direct += 1
            out.append(data)
            return True

        async def handler() -> None:
            over = False
            while not over:
                await reply.changed()
                data, over = reply.take()
                reply.blocked_since = time.monotonic()
                while steps % 5 in (3, 4) and not over:  # events come meanwhile, and `write` would take some
                    await asyncio.sleep(0)
                out.append(data)
                reply.blocked_since = None
                reply.write = write

        task = asyncio.create_task(handler())
        for steps in range(151):
            desk.deliver([TokenEvent("cmpl-1-0", 0, (97 + steps % 26,))])
            await asyncio.sleep(0)
        desk.deliver([TokenEvent("cmpl-1-0", 0, (33,))])
        engine.running.clear()
        desk.deliver([TokenEvent("cmpl-1-0", 0, (256,), finish=FinishReason.STOP, stop_token=256)])
        await task
        data = b"".join(out)
        assert text_of(data) == "".join(chr(97 + k % 26) for k in range(151)) + "!"
        assert data.endswith(b"data: [DONE]\n\n")
        assert direct > 10, "some of it was written at once"

    asyncio.run(test())


def test_the_handler_is_left_alone_in_the_middle_of_a_stream(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    sends = 0
    real = RequestResponseCycle.send

    async def counted(self: RequestResponseCycle, message: Any) -> None:
        nonlocal sends
        sends += 1
        await real(self, message)

    monkeypatch.setattr(RequestResponseCycle, "send", counted)
    server = start(FakeEngine(script=says("abcdefghij")))
    answer = b""
    with connect(server.port) as sock:
        sock.sendall(post("/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 400}, CLOSE))
        wait_until(lambda: len(server.engine.running) == 1)
        for letter in b"abcdefghij":  # each is there before the next is made: nobody falls behind
            server.engine.step()
            while b'"text":"%c"' % letter not in answer:
                piece = sock.recv(65536)
                assert piece, answer
                answer += piece
        server.engine.step()
        answer += read_all(sock)
    assert "".join(e["choices"][0]["text"] for e in events_of(answer)) == "abcdefghij"
    assert sends == 3, "the head, the first token, the end"


def test_a_reader_that_pauses_gets_every_byte(start: Start) -> None:
    """It lets the connection's buffer fill up, so that writing pauses, and reads on."""
    script = [97 + k % 26 for k in range(400)]
    settings = ServerSettings(max_stream_buffer=64 << 20, stall_timeout=600)
    server = start(FakeEngine(script=lambda request, index: script), settings)
    call = {"prompt": ["a"] * 40, "max_tokens": 400, "stream": True, "logprobs": 5}
    with connect(server.port, receive_buffer=4096) as sock:
        sock.sendall(post("/v1/completions", call, CLOSE))
        wait_until(lambda: len(server.engine.running) == 40)
        for step in range(400):
            server.engine.step()
            if step % 100 == 99:
                time.sleep(0.05)
        assert server.desk.open == 1
        answer = read_all(sock)
    choices = [choice for event in events_of(answer) for choice in event["choices"]]
    for index in range(40):
        assert "".join(c["text"] for c in choices if c["index"] == index) == "".join(map(chr, script))
