"""Hostile bodies and heads: refused by name, the server unharmed."""

import contextlib
import json
import socket
import time

import pytest

from headrace.api import ServerSettings
from tests.api.conftest import Running, Start
from tests.api.fakes import FakeEngine, wait_until
from tests.api.raw import connect, exchange, get, post, read_all

CLOSE = "Connection: close\r\n"
GOOD = {"prompt": "a", "max_tokens": 1}


@pytest.fixture
def server(start: Start) -> Running:
    return start(FakeEngine(pace=0.001))


@pytest.fixture
def hasty(start: Start) -> Running:
    """For what does not come: whoever does send something might be too slow for it on a busy machine."""
    return start(FakeEngine(pace=0.001), ServerSettings(body_timeout=0.5, head_timeout=0.7))


def error_of(answer: bytes) -> dict[str, object]:
    found = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return dict(found)


def still_serves(server: Running) -> None:
    assert exchange(server.port, post("/v1/completions", GOOD, CLOSE))[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"\xff", 400), (b"[" * 250_000, 400), (b'{"prompt":"\xc3\x28"}', 400),
        (b'{"prompt":"a","prompt":"b"}', 400), (b'{"prompt":"a","temperature":NaN}', 400), (b"[]", 400),
        (b'{"prompt":"' + b"a" * (9 << 20) + b'"}', 413), (b'{"prompt":"' + b"a" * 600 + b'"}', 400),
        (b'{"prompt":""}', 400), (b'{"prompt":"a","max_tokens":512}', 400), (b'{"prompt":"a","n":129}', 400),
    ],
    ids=lambda b: ascii(b)[:24],
)  # fmt: skip
def test_bad_bodies(server: Running, body: bytes, status: int) -> None:
    found, answer = exchange(server.port, post("/v1/completions", body, CLOSE))
    assert found == status
    assert error_of(answer)["code"] == status
    still_serves(server)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(server: Running) -> None:
    _, answer = exchange(server.port, post("/v1/completions", {"prompt": "a" * 600}, CLOSE))
    assert "600 tokens" in str(error_of(answer)["message"])
    assert "512" in str(error_of(answer)["message"])
    _, answer = exchange(server.port, post("/v1/completions", {"prompt": "a" * 500, "max_tokens": 20}, CLOSE))
    assert "lower max_tokens to 12" in str(error_of(answer)["message"])
    chat = {"messages": [{"role": "user", "content": "a" * 500}]}
    status, answer = exchange(server.port, post("/v1/chat/completions", chat, CLOSE))
    assert status == 200
    assert server.engine.submitted[-1].sampling.max_tokens == 512 - 506


def test_content_types(server: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/jsonx"):
        request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: %s\r\n"
        request = request % kind.encode() + b"Content-Length: 2\r\n\r\n{}"
        assert exchange(server.port, request)[0] == 415
    zipped = post("/v1/completions", GOOD, CLOSE + "Content-Encoding: gzip\r\n")
    assert exchange(server.port, zipped)[0] == 415
    good = post("/v1/completions", GOOD, CLOSE).replace(b"application/json", b"Application/JSON; charset=utf-8")
    assert exchange(server.port, good)[0] == 200


def test_unknown_paths_and_methods_have_openai_shaped_errors(server: Running) -> None:
    status, answer = exchange(server.port, get("/v1/nothing"))
    assert (status, error_of(answer)["type"]) == (404, "NotFoundError")
    status, answer = exchange(server.port, get("/v1/completions"))
    assert (status, error_of(answer)["type"]) == (405, "MethodNotAllowedError")
    assert b"allow: POST\r\n" in answer


def test_chunked_bodies_are_measured_as_they_come(server: Running) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    )
    body = json.dumps(GOOD).encode()
    tiny = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert exchange(server.port, head + b"Connection: close\r\n\r\n" + tiny)[0] == 200
    with connect(server.port) as sock:
        sock.sendall(head + b"\r\n")
        answer, piece = b"", b"%x\r\n" % (1 << 20) + b"a" * (1 << 20) + b"\r\n"
        try:
            for _ in range(70):
                sock.sendall(piece)
        except OSError:
            pass
        answer = read_all(sock)
    assert b" 413 " in answer.split(b"\r\n", 1)[0] or not answer  # the reset may overtake the answer
    still_serves(server)


def test_a_body_in_too_many_chunks(server: Running) -> None:
    """C27: 65,536 pass (and are no JSON then), one more does not, nor a million."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    chunk, last = b"1\r\na\r\n", b"0\r\n\r\n"
    _, answer = exchange(server.port, head + chunk * 65_536 + last)
    assert "not valid JSON" in str(error_of(answer)["message"])
    for count in (65_537, 1_000_000):
        with connect(server.port) as sock, contextlib.suppress(OSError):
            sock.sendall(head + chunk * count + last)
            answer = read_all(sock)
            assert "65536 pieces" in str(error_of(answer)["message"]) or not answer
    still_serves(server)


def test_a_body_that_does_not_come(hasty: Running) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    begin = time.monotonic()
    status, answer = exchange(hasty.port, head)
    assert status == 408
    assert time.monotonic() - begin > 0.4
    assert "0.5 seconds" in str(error_of(answer)["message"])


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: -1", "Content-Length: +5", "Content-Length: 5,5", "Content-Length: 0x5",
        "Content-Length: 2\r\nContent-Length: 3", "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: xchunked", "Bad Header: x", "Content-Length: 99999999999999999999999",
    ],
)  # fmt: skip
def test_message_framing_that_two_servers_could_read_differently(server: Running, lines: str) -> None:
    """C28."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{lines}\r\n\r\n{{}}"
    status, _ = exchange(server.port, head.encode())
    assert status in (400, 408, 413)
    still_serves(server)


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /health HTTP/1.1\r\nX: " + b"a" * (33 << 10) + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"a" * (10 << 20),
        b"GET /" + b"a" * (33 << 10) + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
    ],
    ids=["header", "endless header", "url", "many headers"],
)
def test_heads_that_are_too_large(server: Running, request_head: bytes) -> None:
    """C26."""
    with connect(server.port) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(request_head)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 431 ") or not answer
    if answer:
        assert error_of(answer)["code"] == 431
    still_serves(server)


def test_heads_that_do_not_come(hasty: Running) -> None:
    """C29: idle from the start, one byte at a time, and on a connection that was kept alive."""
    kept = connect(hasty.port)
    kept.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert kept.recv(65536).startswith(b"HTTP/1.1 200")
    kept.sendall(b"GET /hea")
    begun = connect(hasty.port)
    begun.sendall(b"GET /health HTTP/1.1\r\nX")
    for sock in (kept, begun, connect(hasty.port)):
        assert b"HTTP/1.1 408 " in read_all(sock)
        sock.close()


def test_slow_drips_do_not_reset_the_timer(hasty: Running) -> None:
    def drip(sock: socket.socket) -> None:
        for byte in b"GET /".ljust(40, b"/"):
            sock.sendall(bytes([byte]))
            time.sleep(0.1)

    with connect(hasty.port) as sock:
        with pytest.raises(OSError):
            drip(sock)
        assert b"408" in read_all(sock)


def test_garbage_is_answered_and_closed(server: Running) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\nX\r\n",
    ):
        status, _ = exchange(server.port, garbage)
        assert status in (0, 400, 404, 408)
    still_serves(server)


def test_keep_alive_and_pipelining(server: Running) -> None:
    with connect(server.port) as sock:
        sock.sendall(post("/v1/completions", GOOD) + get("/health") + post("/v1/completions", GOOD))
        answer = read_all(sock)
    assert answer.count(b"HTTP/1.1 200 OK") == 2, "the third comes after a request that closes"


def test_a_prompt_list_that_is_too_long_never_reaches_the_tokenizer(server: Running) -> None:
    """C12."""
    status, answer = exchange(server.port, post("/v1/completions", {"prompt": ["a"] * 1_000_000}, CLOSE))
    assert status == 400
    assert "1000000" in str(error_of(answer)["message"])


def test_too_many_in_preparation(start: Start) -> None:
    server = start(FakeEngine(pace=0.001), ServerSettings(max_preparing=1))
    with connect(server.port) as sock:
        sock.sendall(post("/v1/completions", GOOD)[:-1])
        wait_until(lambda: server.app.models.open == 1)
        status, answer = exchange(server.port, post("/v1/completions", GOOD, CLOSE))
        assert status == 429
        assert b"retry-after: 1\r\n" in answer
        sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: server.app.models.open == 0)
    still_serves(server)


def test_a_full_queue_takes_nothing_of_a_call_that_does_not_fit(start: Start) -> None:
    """C25: and what went in before the queue was full comes out again."""
    server = start(FakeEngine(max_queued=2))
    status, answer = exchange(server.port, post("/v1/completions", {**GOOD, "prompt": ["a", "b", "c"]}, CLOSE))
    assert status == 429
    assert b"retry-after: 3\r\n" in answer
    assert server.engine.running == []
    assert server.app.models.open == 0
    _, metrics = exchange(server.port, get("/metrics"))
    line = b'vllm:admission_rejections_total{engine="0",model_name="tiny",reason="max_num_queued_reqs"} 1.0'
    assert line in metrics
