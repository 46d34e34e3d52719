"""Health tells the truth: of the engine, of the life cycle, and never of the load."""

import json
from typing import Any

import pytest

from headrace.api import ServerSettings
from headrace.api.lifecycle import Phase
from headrace.metrics import CONTENT_TYPE
from headrace.stats import Health
from tests.api.conftest import Start
from tests.api.fakes import FakeEngine, wait_until
from tests.api.raw import connect, exchange, get, post


def document(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    ("dead", "engine_ready", "phase", "live", "ready"),
    [
        (False, True, Phase.READY, 200, 200),
        (False, False, Phase.READY, 200, 503),
        (False, True, Phase.LAME_DUCK, 200, 503),
        (False, True, Phase.DRAINING, 200, 503),
        (True, True, Phase.READY, 503, 503),
    ],
)
def test_health(start: Start, dead: bool, engine_ready: bool, phase: Phase, live: int, ready: int) -> None:
    engine = FakeEngine(dead=dead, ready=engine_ready)
    server = start(engine)
    server.app.lifecycle.phase = phase
    assert exchange(server.port, get("/health/live"))[0] == live
    for path in ("/health/ready", "/health"):
        status, answer = exchange(server.port, get(path))
        assert status == ready
        assert document(answer)["live"] == (live == 200)
        assert document(answer)["ready"] == (ready == 200)
        assert document(answer)["phase"] == phase.value
    server.app.lifecycle.phase = Phase.READY


def test_a_frozen_engine_is_not_live_and_comes_back(start: Start) -> None:
    """C34."""

    class Frozen(FakeEngine):
        age = 60.0

        def health(self) -> Health:
            stalled = self.age > 30
            return Health(not stalled, not stalled, f"no turn for {self.age:.0f} s" if stalled else "", self.age)

    engine = Frozen()
    server = start(engine)
    status, answer = exchange(server.port, get("/health/live"))
    assert status == 503
    assert document(answer)["detail"] == "no turn for 60 s"
    assert document(answer)["heartbeat_age_seconds"] == 60
    engine.age = 0.0
    assert exchange(server.port, get("/health/live"))[0] == 200


def test_busy_is_healthy(start: Start) -> None:
    """C35: a full queue changes neither."""
    server = start(FakeEngine(max_queued=1))
    with connect(server.port) as sock:
        sock.sendall(post("/v1/completions", {"prompt": "a"}))
        wait_until(lambda: len(server.engine.running) == 1)
        assert exchange(server.port, post("/v1/completions", {"prompt": "a"}, "Connection: close\r\n"))[0] == 429
        assert exchange(server.port, get("/health/live"))[0] == 200
        assert exchange(server.port, get("/health/ready"))[0] == 200


def test_metrics_are_there_under_load_and_count_http(start: Start) -> None:
    server = start(FakeEngine(pace=0.001), ServerSettings())
    for number in range(5):
        exchange(server.port, post("/v1/completions", {"prompt": "a", "max_tokens": 1}, "Connection: close\r\n"))
        exchange(server.port, get(f"/hostile/{number}"))
    _, answer = exchange(server.port, get("/metrics"))
    assert f"content-type: {CONTENT_TYPE}\r\n".encode() in answer
    assert b'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 5.0' in answer
    assert b'http_requests_total{handler="none",method="GET",status="4xx"} 5.0' in answer
    assert b"hostile" not in answer
    assert b'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' in answer
