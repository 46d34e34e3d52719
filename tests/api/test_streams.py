"""Clients that go away or do not read: their work stops at once, and nobody else notices."""

import contextlib
import json
import socket
import struct
from typing import Any

import pytest

from headrace.api import ServerSettings
from headrace.types import Request
from tests.api.conftest import Running, Start
from tests.api.fakes import EOS, FakeEngine, wait_until
from tests.api.raw import connect, exchange, get, post, read_all

LONG = {"prompt": "a", "max_tokens": 500}
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 400}


def endless(request: Request, index: int) -> list[int]:
    return [ord("x")] * 10_000


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [socket.socket.close, reset, half_close])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_client_that_leaves_stops_its_work(start: Start, leave: Any, stream: bool, n: int, steps: int) -> None:
    """C36: queued, at the first token, in the middle."""
    server = start(FakeEngine(script=endless))
    sock = connect(server.port)
    sock.sendall(post("/v1/completions", {**LONG, "stream": stream, "n": n}))
    wait_until(lambda: len(server.engine.running) == n)
    for _ in range(steps):
        server.engine.step()
    leave(sock)
    wait_until(lambda: not server.engine.running)
    wait_until(lambda: server.app.models.open == 0)
    sock.close()
    _, metrics = exchange(server.port, get("/metrics"))
    assert b'headrace:client_disconnects_total{engine="0",model_name="tiny"} 1.0' in metrics


def test_leaving_before_the_body_is_complete(start: Start) -> None:
    server = start(FakeEngine(pace=0.001))
    for size in (1, 10, 50, 120):
        with connect(server.port) as sock:
            sock.sendall(post("/v1/completions", LONG)[:-size])
    assert exchange(server.port, get("/health"))[0] == 200
    wait_until(lambda: server.app.models.open == 0)
    assert server.engine.submitted == []


def events_of(answer: bytes) -> list[Any]:
    """The JSON events of a chunked response, which must end with [DONE] and the end of the body."""
    body, raw = b"", answer.partition(b"\r\n\r\n")[2]
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        if not int(size, 16):
            break
        body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    blocks = body.split(b"\n\n")
    assert blocks[-2:] == [b"data: [DONE]", b""]
    return [json.loads(block[6:]) for block in blocks[:-2]]


def test_the_stream_says_what_it_must(start: Start) -> None:
    server = start(FakeEngine(pace=0.001))
    _, answer = exchange(server.port, post("/v1/chat/completions", {**CHAT, "stream": True}, "Connection: close\r\n"))
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"content-type: text/event-stream" in head
    assert b"cache-control: no-cache" in head
    assert b"x-accel-buffering: no" in head
    assert b"x-request-id: " in head
    events = events_of(answer)
    assert all(len(e["choices"]) == 1 for e in events)
    assert [e["choices"][0]["finish_reason"] for e in events].count("stop") == 1


def test_characters_and_stop_strings_over_any_chunking(start: Start) -> None:
    """C50: tokens are single bytes here, so every character beyond ASCII comes in pieces."""
    text = "añ🛞 stop here, no: STOP! never"
    for per_step in (1, 2, 3, 7):
        server = start(FakeEngine(pace=0.001, per_step=per_step, script=lambda r, k: [*text.encode(), EOS]))
        for stream in (True, False):
            call = {"prompt": "x", "max_tokens": 200, "stop": ["STOP!"], "stream": stream, "n": 2}
            _, answer = exchange(server.port, post("/v1/completions", call, "Connection: close\r\n"))
            if stream:
                choices = [c for e in events_of(answer) for c in e["choices"]]
                texts = ["".join(c["text"] for c in choices if c["index"] == k) for k in (0, 1)]
                assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop", "stop"]
            else:
                document = json.loads(answer.partition(b"\r\n\r\n")[2])
                texts = [c["text"] for c in document["choices"]]
                used = len("añ🛞 stop here, no: STOP!".encode())
                assert document["usage"]["completion_tokens"] == 2 * used
            assert texts == ["añ🛞 stop here, no: "] * 2


def test_a_reader_that_stalls_is_cut_off_and_hurts_nobody(start: Start) -> None:
    """C29: bounded memory for the one, the usual pace for the others."""
    settings = ServerSettings(max_stream_buffer=64 << 10, stall_timeout=600)
    server = start(FakeEngine(pace=0.0005, script=lambda r, k: [ord("x")] * 100_000, per_step=100), settings)
    stalled = connect(server.port, receive_buffer=4096)
    wide = {"prompt": ["a"] * 64, "max_tokens": 500, "stream": True, "logprobs": 5}
    stalled.sendall(post("/v1/completions", wide))
    wait_until(lambda: len(server.engine.submitted) == 64)
    status, _ = exchange(server.port, post("/v1/completions", {**LONG, "max_tokens": 5}, "Connection: close\r\n"))
    assert status == 200
    wait_until(lambda: not server.engine.running)
    wait_until(lambda: server.app.models.open == 0)
    with contextlib.suppress(OSError):
        assert b"[DONE]" not in read_all(stalled), "a stream that was cut must not look complete"
    stalled.close()
    _, metrics = exchange(server.port, get("/metrics"))
    assert b'headrace:slow_readers_total{engine="0",model_name="tiny"} 1.0' in metrics


def test_a_reader_that_takes_nothing_for_too_long_is_cut_off(start: Start) -> None:
    settings = ServerSettings(max_stream_buffer=1 << 30, stall_timeout=0.3)
    server = start(FakeEngine(pace=0.0005, script=lambda r, k: [ord("x")] * 100_000, per_step=100), settings)
    stalled = connect(server.port, receive_buffer=4096)
    wide = {"prompt": ["a"] * 64, "max_tokens": 500, "stream": True, "logprobs": 5}
    stalled.sendall(post("/v1/completions", wide))
    wait_until(lambda: len(server.engine.submitted) == 64)
    wait_until(lambda: server.app.models.open == 0)
    stalled.close()


def test_an_error_while_text_is_made_ends_that_call_only(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """C24."""
    server = start(FakeEngine(pace=0.001))
    import headrace.api.choice as choice

    real = choice.Choice.on_event

    def broken(self: choice.Choice, event: Any) -> Any:
        if self._prompt == (ord("!"),):
            raise RuntimeError("/secret/path")
        return real(self, event)

    monkeypatch.setattr(choice.Choice, "on_event", broken)
    status, answer = exchange(server.port, post("/v1/completions", {"prompt": "!"}, "Connection: close\r\n"))
    assert status == 500
    assert b"secret" not in answer
    assert exchange(server.port, post("/v1/completions", {"prompt": "a"}, "Connection: close\r\n"))[0] == 200
    wait_until(lambda: not server.engine.running)


def test_many_streams_are_not_mixed_up(start: Start) -> None:
    """C42's canaries on this side of the engine: every client gets its own words."""
    server = start(FakeEngine(pace=0.001, per_step=3, script=lambda r, k: [*bytes(r.prompt), *f"#{k}".encode(), EOS]))
    socks = []
    for number in range(40):
        sock = connect(server.port)
        call = {"prompt": f"canary-{number}", "n": 2, "stream": number % 2 == 0}
        sock.sendall(post("/v1/completions", call, "Connection: close\r\n"))
        socks.append(sock)
    for number, sock in enumerate(socks):
        answer = read_all(sock)
        sock.close()
        if number % 2 == 0:
            choices = [c for e in events_of(answer) for c in e["choices"]]
            texts = ["".join(c["text"] for c in choices if c["index"] == k) for k in (0, 1)]
        else:
            texts = [c["text"] for c in json.loads(answer.partition(b"\r\n\r\n")[2])["choices"]]
        assert texts == [f"canary-{number}#0", f"canary-{number}#1"]


def test_the_engine_is_woken_once_a_step_not_once_a_token(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hop to the event loop per step, whatever the number of streams."""
    engine = FakeEngine(script=endless)
    server: Running = start(engine)
    call = {"prompt": ["a"] * 50, "max_tokens": 100, "stream": True}
    sock = connect(server.port)
    sock.sendall(post("/v1/completions", call))
    wait_until(lambda: len(engine.running) == 50)
    loop = server.desk._loop
    assert loop is not None
    hops = 0
    real = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal hops
        hops += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    for _ in range(10):
        engine.step()
    assert hops == 10
    sock.close()
