"""SIGTERM: not ready at once, serving still, then draining; no stream that was accepted is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.api.server import listen
from headrace.errors import ConfigError
from tests.api.fakes import TEXT, wait_until
from tests.api.raw import PATIENCE, connect, exchange, get, post, read_all
from tests.api.test_streams import events_of

ROOT = Path(__file__).resolve().parents[2]
CALL = {"prompt": "a", "max_tokens": 100, "stream": True}
CLOSE = "Connection: close\r\n"


@dataclass
class Process:
    process: subprocess.Popen[str]
    port: int

    def status(self, path: str) -> int:
        return exchange(self.port, get(path))[0]

    def go_on(self) -> None:
        """Past the first tokens."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE)


Spawn = Callable[..., Process]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    processes: list[subprocess.Popen[str]] = []

    def spawner(pace: float, lame_duck: float, grace: float, *, held: bool = False) -> Process:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "tests.api.serve_fake", str(pace), str(lame_duck), str(grace)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE if held else subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        return Process(process, int(line))

    yield spawner
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Client(threading.Thread):
    """One streaming call; ``answer`` is what came back."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.answer = b""
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        with connect(self.port) as sock:
            sock.sendall(post("/v1/completions", CALL, CLOSE))
            self.answer = sock.recv(65536)
            self.begun.set()
            self.answer += read_all(sock)

    @property
    def text(self) -> str:
        self.join(PATIENCE)
        return "".join(e["choices"][0]["text"] for e in events_of(self.answer))


def test_sigterm_under_load_loses_no_stream(spawn: Spawn) -> None:
    """C31. No stream ends before everything has been looked at."""
    server = spawn(0.005, 3, 600, held=True)
    clients = [Client(server.port) for _ in range(20)]
    assert all(client.begun.wait(PATIENCE) for client in clients)
    assert server.status("/health/ready") == 200
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.status("/health/ready") == 503)
    assert server.status("/health/live") == 200
    late = Client(server.port)  # lame duck: still served
    assert late.begun.wait(PATIENCE)
    assert late.answer.startswith(b"HTTP/1.1 200")
    wait_until(lambda: server.status("/v1/models") == 503)
    status, answer = exchange(server.port, post("/v1/completions", CALL))  # keep-alive: the server closes
    assert status == 503
    assert b"connection: close\r\n" in answer
    assert b"retry-after: " in answer
    assert server.status("/health/live") == 200
    assert server.status("/metrics") == 200
    server.go_on()
    assert [client.text for client in [*clients, late]] == [TEXT] * 21
    assert server.exit_code() == 0


def test_what_does_not_finish_within_the_grace_period_ends_visibly(spawn: Spawn) -> None:
    server = spawn(0.005, 0, 0.3, held=True)
    client = Client(server.port)
    assert client.begun.wait(PATIENCE)
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_code() == 0
    client.join(PATIENCE)
    assert events_of(client.answer)[-1]["error"]["code"] == 503


def test_a_whole_answer_that_is_cut_short_is_an_error_status(spawn: Spawn) -> None:
    server = spawn(0.005, 0, 0.2, held=True)
    with connect(server.port) as sock:
        sock.sendall(post("/v1/completions", {"prompt": "a", "max_tokens": 100}, CLOSE))
        running = b'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0'
        wait_until(lambda: running in exchange(server.port, get("/metrics"))[1])
        server.process.send_signal(signal.SIGTERM)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 503")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "ServiceUnavailableError"
    assert server.exit_code() == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_everything_at_once(spawn: Spawn, first: signal.Signals) -> None:
    """C32."""
    server = spawn(0.005, 600, 600, held=True)
    client = Client(server.port)
    assert client.begun.wait(PATIENCE)
    server.process.send_signal(first)
    wait_until(lambda: server.status("/health/ready") == 503)
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_code() == 0
    client.join(PATIENCE)
    assert "error" in events_of(client.answer)[-1]


def test_idle_it_stops_quickly_and_idle_connections_do_not_hold_it(spawn: Spawn) -> None:
    server = spawn(0.01, 0, 600)
    with connect(server.port) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGINT)
        assert server.exit_code() == 0


def test_a_port_in_use_is_one_clear_error() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen("no.such.host.invalid", 8000)
