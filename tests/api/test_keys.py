"""Without a key nothing opens but health: for every route of the table, however its path is written."""

import json

import pytest

from headrace.api import ServerSettings
from headrace.errors import Unauthorized
from tests.api.conftest import Running, Start
from tests.api.fakes import FakeEngine
from tests.api.raw import exchange, get, post

KEY = "s3cret-key-0123456789-abcdef"
OPEN = {"/", "/health", "/health/live", "/health/ready"}
BAD_KEYS = [
    "", "Bearer", "Bearer ", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Basic {KEY}", KEY, f"Bearer {KEY.upper()}",
    f"Bearer {KEY[:20]}-other", "Bearer ' OR 1=1--", "Bearer \xe9\xff", "Bearer " + "k" * 20_000, f"Bearer{KEY}",
]  # fmt: skip


@pytest.fixture
def server(start: Start) -> Running:
    return start(FakeEngine(pace=0.001), ServerSettings(api_keys=("another", KEY)))


def test_every_route_of_the_table_is_closed(server: Running) -> None:
    """C01: a new route is in this loop as soon as it is in the table."""
    for route in server.app.routes:
        assert route.open == (route.method == "GET" and route.path in OPEN)
        path = route.path.replace("{id}", "tiny")
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            status, answer = exchange(server.port, get(path, method=method))
            if path in OPEN and method in ("GET", "HEAD"):
                assert status == 200
            else:
                assert status == 401, (method, path)
                if method != "HEAD":
                    told = json.loads(answer.partition(b"\r\n\r\n")[2])
                    assert told.keys() == route.errors.body(Unauthorized("")).keys()
                    assert "Authorization: Bearer" in json.dumps(told)


@pytest.mark.parametrize("authorization", BAD_KEYS, ids=lambda k: k[:24].encode("unicode_escape").decode())
def test_wrong_keys(server: Running, authorization: str) -> None:
    """C05."""
    status, answer = exchange(server.port, get("/v1/models", f"Authorization: {authorization}\r\n"))
    assert status == 401
    assert KEY.encode() not in answer
    assert exchange(server.port, get("/nothing/here", f"Authorization: {authorization}\r\n"))[0] == 401


def test_right_keys(server: Running) -> None:
    for key in (KEY, "another"):
        assert exchange(server.port, get("/v1/models", f"Authorization: Bearer {key}\r\n"))[0] == 200
        assert exchange(server.port, get("/v1/models", f"authorization: bearer  {key} \r\n"))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models", "/v1//models", "/v1/../v1/models", "/health/../v1/models", "/health/live/../../v1/models",
        "/v1/%6dodels", "/%76%31/models", "/v1%2fmodels", "/v1/models;x", "/v1/models/", "/V1/MODELS", "/v1/models%00",
        "/health/live%2f..%2f..%2fv1%2fmodels", "/health/live/", "/health?x=/v1/models/..", "http://x/v1/models",
        "http://x/health/../v1/models", "/health;/v1/models", "/metrics", "/metrics/", "/v1/models/tiny",
    ],
)  # fmt: skip
def test_no_way_of_writing_a_path_opens_a_route(server: Running, path: str) -> None:
    """C03: without a key the answer is 401 or, for an open path, health; the model list is never in it."""
    for headers in ("", "X-Forwarded-Prefix: /health\r\n", "X-Original-URL: /health\r\n", "Host: a/?x=\r\n"):
        status, answer = exchange(server.port, get(path, headers))
        assert status in (400, 401) or (status == 200 and b'"phase"' in answer), (status, path)
        assert b"max_model_len" not in answer
        assert b"vllm:" not in answer


def test_paths_are_compared_exactly_with_a_key_too(server: Running) -> None:
    key = f"Authorization: Bearer {KEY}\r\n"
    for path in ("//v1/models", "/v1/models/", "/v1/%6dodels", "/V1/models", "/metrics/"):
        assert exchange(server.port, get(path, key))[0] == 404
    assert exchange(server.port, get("/v1/models/org%2Ftiny", key))[0] == 200
    assert exchange(server.port, get("/v1/models/org/tiny?x=1", key))[0] == 200


def test_keys_are_the_fairness_client(server: Running) -> None:
    key = f"Authorization: Bearer {KEY}\r\nConnection: close\r\n"
    assert exchange(server.port, post("/v1/completions", {"prompt": "a", "max_tokens": 1}, key))[0] == 200
    assert server.engine.submitted[-1].client == "key:key-1"


def test_callers_ids_are_echoed_and_never_used_inside(server: Running) -> None:
    """C08, C09."""
    headers = f"Authorization: Bearer {KEY}\r\nConnection: close\r\nX-Request-Id: mine-1\r\n"
    for _ in range(2):
        status, answer = exchange(server.port, post("/v1/completions", {"prompt": "a", "max_tokens": 1}, headers))
        assert status == 200
        assert b"x-request-id: mine-1\r\n" in answer
    first, second = server.engine.submitted
    assert first.id != second.id
    assert "mine" not in first.id
    for hostile in ("a b", "x" * 129, "\x1b[31m", "é", "a\x7fb"):
        _, answer = exchange(server.port, get("/health", f"X-Request-Id: {hostile}\r\n"))
        assert hostile.encode("latin-1") not in answer
