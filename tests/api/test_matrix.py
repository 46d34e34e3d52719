"""Attack x dialect: every attack on every route of the running application.

The routes come from the application, so that a new one is attacked on arrival; its good request goes into
tests/api/examples.py. The guards live below the dialects; this is what finds the dialect that went round one.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.access import Key, Scope, digest_of, format_key
from headrace.api import ServerSettings
from headrace.api.routes import Route
from headrace.cli.logs import OneLine
from tests.api.conftest import Running, Start
from tests.api.examples import EXAMPLES, Example
from tests.api.fakes import FakeEngine, app_of, wait_until
from tests.api.raw import connect, exchange, read_all

SECRET = "hr-matrix-secret-0123456789"
ROUTES = app_of(FakeEngine()).routes
OPEN = {"/", "/health", "/health/live", "/health/ready"}
"""Of GET; the whole list of what answers without a key."""
EXTREMES: list[Any] = [
    -(2**63), -1, 0, 2**31, 2**63, 10**400, 1e308, -0.0, "1", "", "x" * 2000, True, None, [], {}, [[]], [None], [-1],
    [2**63], {"a": {}}, ["a", 1], "\ud800", "\x00", "\x1b[31m\r\nX: y",
]  # fmt: skip
NUMBERS = (
    "n", "best_of", "max_tokens", "max_completion_tokens", "max_new_tokens", "min_tokens", "num_predict", "num_ctx",
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "logprobs",
    "top_logprobs", "prompt_logprobs", "priority", "timeout",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "repeat_penalty", "top_n_tokens",
    "dimensions", "keep_alive", "truncate",
)  # fmt: skip
IDS = [f"{route.method} {route.path}" for route in ROUTES]
BODIES = [route for route in ROUTES if (EXAMPLES.get((route.method, route.path)) or Example()).body is not None]
BODY_IDS = [f"{route.method} {route.path}" for route in BODIES]


def example_of(route: Route) -> Example:
    found = EXAMPLES.get((route.method, route.path))
    assert found is not None, f"{route.method} {route.path} has no example in tests/api/examples.py"
    return found


@pytest.fixture(scope="module")
def server(start_once: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """One server for all: with keys, so that every guard stands."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    everything = Key("root", digest_of(SECRET.encode()), "root", frozenset(Scope))
    user = Key("user", digest_of(b"user"), "user")
    watch = Key("watch", digest_of(b"watch"), "watch", frozenset({Scope.METRICS}))
    file.write_text("\n".join(map(format_key, (everything, user, watch))))
    settings = ServerSettings(api_key_file=Path(file), body_timeout=5)
    return start_once(FakeEngine(pace=0.001), settings)


@pytest.fixture(autouse=True)
def unharmed(server: Running, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After every attack: a good call is answered, nothing is left over, and neither log nor error tells a secret."""
    caplog.set_level(logging.DEBUG, "headrace")
    yield
    status, _ = send(server, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})
    assert status == 200
    wait_until(lambda: server.app.models.open == 0 and not server.engine.running)
    assert exchange(server.port, b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 200
    assert SECRET not in caplog.text
    for record in caplog.records:
        line = OneLine("%(message)s").formatMessage(record) if record.exc_info is None else ""
        assert not any(ord(character) < 32 for character in line), "a caller wrote into the log"
        assert record.exc_info is None, f"an error that nobody expected: {record.exc_text or record.getMessage()}"


def raw(method: str, path: str, body: bytes | None, headers: str = "", kind: str = "application/json") -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}"
    if body is None:
        return f"{lines}\r\n".encode("latin-1")
    return f"{lines}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode("latin-1") + body


def send(server: Running, method: str, path: str, body: Any, key: str = SECRET, **more: str) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = f"Authorization: Bearer {key}\r\n" if key else ""
    return exchange(
        server.port, raw(method, path.replace("{id}", "tiny"), data, headers + more.pop("headers", ""), **more)
    )


def refused(found: tuple[int, bytes], *statuses: int) -> None:
    """An error of the caller's, in JSON, that gives away nothing of the inside."""
    status, answer = found
    assert status in (statuses or range(400, 500)), answer[:300]
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert "error" in document
    for inside in (b"Traceback", b"/headrace/", b"site-packages", b"0x7f", SECRET.encode()):
        assert inside not in answer
    assert not any(byte < 32 for byte in answer.partition(b"\r\n\r\n")[2]), "control characters are escaped"


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_the_example_is_good(server: Running, route: Route) -> None:
    """Otherwise the attacks below would prove nothing."""
    example = example_of(route)
    status, answer = send(server, route.method, route.path, example.body)
    assert status == example.status, answer


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_no_key_no_answer(server: Running, route: Route) -> None:
    """C01, C02, C05."""
    body = example_of(route).body
    assert route.open == (route.method == "GET" and route.path in OPEN), "what is open is decided here"
    if route.open:
        assert send(server, route.method, route.path, body, key="")[0] == 200
        return
    refused(send(server, route.method, route.path, body, key=""), 401)
    for headers in (
        "Authorization: Bearer\r\n", f"Authorization: Basic {SECRET}\r\n", f"Authorization: {SECRET}\r\n",
        f"Authorization: Bearer {SECRET[:-1]}\r\n", f"Authorization: Bearer {SECRET}x\r\n",
        "Authorization: Bearer ' OR 1=1--\r\n",
        f"x-api-key: {SECRET[:-1]}\r\n", f"Cookie: key={SECRET}\r\n",
        f"x-api-key: {digest_of(SECRET.encode()).hex()}\r\n",
        "X-Forwarded-For: 127.0.0.1\r\n",
        f"Authorization: Bearer wrong\r\nx-api-key: {SECRET}\r\n",
    ):  # fmt: skip
        refused(send(server, route.method, route.path, body, key="", headers=headers), 401)
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        status, _ = send(server, method, route.path, body, key="")
        assert status == 401 or (method == "GET" and route.path in OPEN)
    good = send(server, route.method, route.path, body, key="", headers=f"x-api-key: {SECRET}\r\n")
    assert good[0] == example_of(route).status


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_a_key_is_good_for_what_it_is_good_for(server: Running, route: Route) -> None:
    """C06."""
    example = example_of(route)
    for key, scope in (("user", Scope.INFERENCE), ("watch", Scope.METRICS)):
        found = send(server, route.method, route.path, example.body, key=key)
        if route.open or route.access is scope:
            assert found[0] == example.status
        else:
            refused(found, 403)


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_no_way_of_writing_the_path_opens_it(server: Running, route: Route) -> None:
    """C03."""
    path, body = route.path.replace("{id}", "tiny"), example_of(route).body
    if route.open:
        return
    tail = path.rpartition("/")[2]
    tricks = [
        f"/{path}", f"{path}/", f"{path}//", path.upper() if path != "/" else "/.", path.replace("/", "%2f"),
        f"{path}%00",
        f"{path};x", f"/health/..{path}", f"/health/live/../..{path}", f"/health/%2e%2e{path}", f"{path}%20",
        f"{path[: len(path) - len(tail)]}%{ord(tail[0]):02x}{tail[1:]}" if tail else "/%2e", f"/.{path}",
        f"http://x{path}", f"http://x/health/..{path}", f"/health?{path}", f"{path}?x=/health",
        f"/health#{path}", f"\\{path}",
    ]  # fmt: skip
    for trick in tricks:
        for headers in ("", "X-Original-URL: /health\r\nX-Forwarded-Prefix: /health\r\n", "Host: health/?x=\r\n"):
            status, answer = exchange(server.port, raw(route.method, trick, json.dumps(body).encode(), headers))
            shown = (status == 200 and b'"phase"' in answer) or (status == 405 and b"allow: GET, HEAD\r\n" in answer)
            assert shown or status in (400, 401), (trick, status, answer[:200])


@pytest.mark.parametrize("route", BODIES, ids=BODY_IDS)
def test_hostile_bodies(server: Running, route: Route) -> None:
    """C15, C28."""
    example = example_of(route)
    good = json.dumps(example.body).encode()
    for body in (
        b"", b"{", b"\xff", b"null", b"[]", b'"a"', b"1", b"[" * 250_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b"\xef\xbb\xbf" + good, good[:-1] + b',"temperature":NaN}', good[:-1] + b',"x":Infinity}', good + good,
        good[:-1] + b', "' + next(iter(example.body or {})).encode() + b'": 1}', b'{"\xed\xa0\x80":1}',
        b'{"a":' + b"9" * 5_000 + b"}", b"{" + b",".join(b'"k%d":1' % k for k in range(20_000)) + b"}",
    ):  # fmt: skip
        refused(send(server, route.method, route.path, body))
    refused(send(server, route.method, route.path, b'{"a":"' + b"a" * (9 << 20) + b'"}'), 413)


@pytest.mark.parametrize("route", BODIES, ids=BODY_IDS)
def test_bombs_and_false_colours(server: Running, route: Route) -> None:
    """C28: nothing is ever unpacked."""
    example = example_of(route)
    good = json.dumps(example.body).encode()
    for coding in ("gzip", "deflate", "br", "gzip, identity"):
        found = send(server, route.method, route.path, gzip.compress(good), headers=f"Content-Encoding: {coding}\r\n")
        refused(found, 415)
    refused(send(server, route.method, route.path, gzip.compress(b"0" * 10_000_000)))
    for kind in (
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "application/jsonx",
    ):
        status, _ = send(server, route.method, route.path, good, kind=kind)
        assert status == (example.status if example.any_media_type else 415)


@pytest.mark.parametrize("route", BODIES, ids=BODY_IDS)
def test_a_body_in_a_million_pieces(server: Running, route: Route) -> None:
    """C27."""
    head = f"{route.method} {route.path.replace('{id}', 'tiny')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {SECRET}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(server.port) as sock, contextlib.suppress(OSError):
        sock.sendall(head.encode() + b"1\r\na\r\n" * 1_000_000 + b"0\r\n\r\n")
        answer = read_all(sock)
        assert not answer or answer.startswith(b"HTTP/1.1 4")


def variants(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The body with one field, or one field of an object in it, at an extreme; known fields and numbers it has not."""
    places: list[tuple[str, ...]] = [(name,) for name in (*body, *NUMBERS)]
    for outer in ("options", "parameters"):
        if isinstance(body.get(outer), dict):
            places += [(outer, name) for name in (*body[outer], *NUMBERS)]
    for place in places:
        for extreme in EXTREMES:
            if len(place) == 1:
                yield {**body, place[0]: extreme}
            else:
                yield {**body, place[0]: {**body[place[0]], place[1]: extreme}}


@pytest.mark.parametrize("route", BODIES, ids=BODY_IDS)
def test_extremes_of_every_field(server: Running, route: Route) -> None:
    """C11, C12, C13: a bounded answer or a refusal that says why; nothing in between, and never our fault."""
    example = example_of(route)
    with connect(server.port) as sock:
        sock.settimeout(20)
        for body in variants(example.body or {}):
            data = json.dumps(body).encode()
            head = raw(route.method, route.path.replace("{id}", "tiny"), data, f"Authorization: Bearer {SECRET}\r\n")
            sock.sendall(head.replace(b"Connection: close\r\n", b""))
            status, answer = read_one(sock)
            assert status < 500 or (status == 503 and b"memory" in answer), (body, answer)
            if status == 200:
                assert len(answer) < 200_000
            else:
                assert b"error" in answer


def read_one(sock: socket.socket) -> tuple[int, bytes]:
    """One response of a connection that is kept: by its length, or by its last chunk."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    status, lower = int(head.split(b" ", 2)[1]), head.lower()
    if b"content-length: " in lower:
        length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += receive(sock)
    else:
        while not body.endswith(b"0\r\n\r\n"):
            body += receive(sock)
    return status, body


def receive(sock: socket.socket) -> bytes:
    piece = sock.recv(1 << 20)
    assert piece, "the connection was cut"
    return piece


@pytest.mark.parametrize("route", BODIES, ids=BODY_IDS)
def test_what_is_not_honoured_is_refused_by_name(server: Running, route: Route) -> None:
    """C22, C23: unknown fields, and those of other servers' insides."""
    example = example_of(route)
    if example.ignores_unknown:
        return
    for name in ("zzz", "kv_transfer_params", "prompt_embeds", "chat_template", "\x1b[31mred\r\nX-Evil: 1"):
        found = send(server, route.method, route.path, {**(example.body or {}), name: "x"})
        if found[0] != example.status or found[0] == 200:
            refused(found)


@pytest.mark.parametrize("route", BODIES, ids=BODY_IDS)
def test_nothing_is_ever_fetched(server: Running, route: Route) -> None:
    """C21: addresses in a body are text, or refused; nobody calls them."""
    example = example_of(route)
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"![]({url})"}]
        bodies: list[dict[str, Any]] = [
            {**(example.body or {}), name: value}
            for name in ("prompt", "inputs", "input", "messages", "images", "query", "text_1", "tools", "image_url")
            for value in (url, [url], f"![x]({url})", [{"role": "user", "content": content}], content)
        ]
        for body in bodies:
            send(server, route.method, route.path, body)
        with pytest.raises(BlockingIOError):
            trap.accept()


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_callers_strings_stay_on_their_line(server: Running, route: Route) -> None:
    """C08, C09: names, ids and headers with control characters; the same id twice."""
    example = example_of(route)
    for hostile in ("a\x1b[31mb", "\u2028x", "%0d%0aX-Evil:1", "a\tb", "x" * 4000):
        body = None if example.body is None else {**example.body, "model": hostile, "user": hostile}
        latin = hostile.encode().decode("latin-1")
        headers = f"X-Request-Id: {latin}\r\nUser-Agent: {latin}\r\n"
        status, answer = send(server, route.method, route.path, body, headers=headers)
        assert status < 500
        assert b"\x1b" not in answer
        assert b"\r\nX-Evil" not in answer
    for _ in range(2):
        status, answer = send(server, route.method, route.path, example.body, headers="X-Request-Id: same\r\n")
        assert (status, b"x-request-id: same\r\n" in answer) == (example.status, True)


def test_the_table_has_no_route_too_many() -> None:
    assert set(EXAMPLES) == {(route.method, route.path) for route in ROUTES}
