"""A file of keys in front of a server: scopes, quotas, tenants, and changes while it runs."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.access import Key, Limits, Scope, digest_of, format_key
from headrace.api import ServerSettings
from headrace.api.callers import Keys
from headrace.errors import ConfigError
from tests.api.conftest import Running, Start
from tests.api.fakes import FakeEngine, wait_until
from tests.api.raw import connect, exchange, get, post, read_all

BODY = {"prompt": "a", "max_tokens": 4}


def write(file: Path, *keys: Key) -> Path:
    fresh = file.with_suffix(".new")
    fresh.write_text("\n".join(format_key(key) for key in keys))
    fresh.replace(file)
    return file


def key(name: str, *, tenant: str = "", scopes: Sequence[Scope] = (Scope.INFERENCE,), **limits: int) -> Key:
    return Key(name, digest_of(f"secret of {name}".encode()), tenant or name, frozenset(scopes), Limits(**limits))


def call(server: Running, name: str, body: object = BODY, header: str = "Authorization: Bearer") -> tuple[int, bytes]:
    sent = f"{header}{':' if header == 'x-api-key' else ''} secret of {name}\r\nConnection: close\r\n"
    return exchange(server.port, post("/v1/completions", body, sent))


def look(server: Running, path: str, name: str) -> int:
    return exchange(server.port, get(path, f"Authorization: Bearer secret of {name}\r\n"))[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def test_scopes(start: Start, file: Path) -> None:
    write(file, key("user"), key("watch", scopes=[Scope.METRICS]), key("root", scopes=list(Scope)))
    server = start(FakeEngine(pace=0.001), ServerSettings(api_key_file=file, api_keys=("plain",)))
    for name, completions, metrics in (
        ("user", 200, 403),
        ("watch", 403, 200),
        ("root", 200, 200),
        ("other", 401, 401),
    ):
        assert call(server, name)[0] == completions
        assert look(server, "/metrics", name) == metrics
        assert call(server, name, header="x-api-key")[0] == completions
    assert exchange(server.port, get("/metrics", "Authorization: Bearer plain\r\n"))[0] == 200
    _, answer = exchange(server.port, get("/metrics", "Authorization: Bearer plain\r\n"))
    assert b'headrace:access_refusals_total{engine="0",model_name="tiny",reason="scope"} 3.0' in answer
    assert b'reason="key"} 3.0' in answer
    assert b"secret" not in answer
    assert digest_of(b"secret of user").hex().encode() not in answer


def test_quotas_are_429_with_the_truth(start: Start, file: Path) -> None:
    write(file, key("few", requests_per_minute=3), key("words", tokens_per_minute=60), key("one", concurrent=1))
    server = start(FakeEngine(pace=0.001), ServerSettings(api_key_file=file))
    assert [call(server, "few")[0] for _ in range(4)] == [200, 200, 200, 429]
    assert look(server, "/v1/models", "few") == 200, "reading the list is no work"
    _, answer = call(server, "few")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "RateLimitError"
    assert b"retry-after: 20\r\n" in answer or b"retry-after: 19\r\n" in answer, "3 a minute: one every 20 s"
    assert call(server, "words", {"prompt": "a" * 100, "max_tokens": 20})[0] == 200, "its cost is known afterwards"
    status, answer = call(server, "words")
    assert status == 429
    wait = int(answer.split(b"retry-after: ")[1].split(b"\r\n")[0])
    assert 58 <= wait <= 62, "61 tokens in debt, and one to have: at one a second"


def test_a_refused_call_costs_nothing(start: Start, file: Path) -> None:
    write(file, key("words", tokens_per_minute=60))
    server = start(FakeEngine(pace=0.001, max_queued=0), ServerSettings(api_key_file=file))
    for body, status in (({"prompt": "a" * 400}, 429), ({"prompt": "a" * 600}, 400), ({"prompt": "a" * 400}, 429)):
        found, answer = call(server, "words", body)
        assert found == status
        assert b"tokens per minute" not in answer


def test_concurrency_counts_what_runs(start: Start, file: Path) -> None:
    write(file, key("one", concurrent=1), key("two"))
    server = start(FakeEngine(), ServerSettings(api_key_file=file))
    auth = "Authorization: Bearer secret of one\r\n"
    with connect(server.port) as sock:
        sock.sendall(post("/v1/completions", {**BODY, "stream": True}, auth))
        wait_until(lambda: len(server.engine.running) == 1)
        status, answer = call(server, "one")
        assert (status, b"1 requests running" in answer) == (429, True)
        for _ in range(4):
            server.engine.step()
        wait_until(lambda: server.app.models.open == 0)
        sock.sendall(post("/v1/completions", BODY, auth + "Connection: close\r\n"))
        wait_until(lambda: len(server.engine.running) == 1)
        for _ in range(4):
            server.engine.step()
        assert read_all(sock).count(b" 200 OK") == 2


def test_tenants_are_kept_apart(start: Start, file: Path) -> None:
    """C49: the salt of what is cached has the tenant in it, and no caller can write another's."""
    write(file, key("a"), key("b"), key("b-again", tenant="b"))
    server = start(FakeEngine(pace=0.001), ServerSettings(api_key_file=file))
    for name in ("a", "b", "b-again"):
        assert call(server, name, {**BODY, "cache_salt": "x"})[0] == 200
    salts = [request.cache_salt for request in server.engine.submitted]
    assert salts == ["a/x", "b/x", "b/x"]
    assert [request.client for request in server.engine.submitted] == ["key:a", "key:b", "key:b"]
    for salt in ("b/x", "../b/x", "/b/x", "", "b\x00"):
        assert call(server, "a", {**BODY, "cache_salt": salt})[0] == 400
    shared = start(FakeEngine(pace=0.001), ServerSettings(api_key_file=file, share_prefixes=True))
    for name in ("a", "b"):
        assert call(shared, name)[0] == 200
    assert [request.cache_salt for request in shared.engine.submitted] == ["/", "/"]


def test_changes_are_followed(start: Start, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(file, key("old"))
    server = start(FakeEngine(pace=0.001), ServerSettings(api_key_file=file))
    assert (call(server, "old")[0], call(server, "new")[0]) == (200, 401)
    write(file, key("new"))
    wait_until(lambda: call(server, "new")[0] == 200)
    assert call(server, "old")[0] == 401
    file.write_text("this is: hr-my-secret-pasted-by-mistake\n")
    wait_until(lambda: "the keys stay as they were" in caplog.text)
    assert "hr-my-secret" not in caplog.text
    assert call(server, "new")[0] == 200
    file.unlink()
    assert call(server, "new")[0] == 200
    write(file)
    wait_until(lambda: call(server, "new")[0] == 401)
    assert exchange(server.port, get("/health"))[0] == 200


def test_a_file_that_is_wrong_stops_the_start(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        Keys(ServerSettings(api_key_file=file))
    file.write_text("a\n")
    with pytest.raises(ConfigError, match="line 1"):
        Keys(ServerSettings(api_key_file=file))
    write(file, key("key-0"))
    with pytest.raises(ConfigError, match="--api-key"):
        Keys(ServerSettings(api_key_file=file, api_keys=("x",)))
