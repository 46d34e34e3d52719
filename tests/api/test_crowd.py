"""A crowd of good, rude and hostile clients: nothing is left over in the end, and the good ones got their answers."""

import asyncio
import contextlib
import json
import random
import threading

from headrace.api import ServerSettings
from tests.api.conftest import Running, Start
from tests.api.fakes import TEXT, FakeEngine, wait_until
from tests.api.raw import connect, exchange, get, post, read_all
from tests.api.test_streams import events_of, reset

GOOD = post("/v1/completions", {"prompt": "a", "max_tokens": 100}, "Connection: close\r\n")
STREAM = post("/v1/completions", {"prompt": "a", "max_tokens": 100, "stream": True}, "Connection: close\r\n")


def mutated(rng: random.Random) -> bytes:
    """A good request with a few bytes changed, cut out or put in."""
    data = bytearray(rng.choice([GOOD, STREAM, get("/v1/models")]))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randint(1, 20)]
            case _:
                data[at:at] = rng.choice([b"\r\n", b"\x00", b"[" * 50, b'"', b"9" * 30, b"\xff", b": "])
        if not data:
            break
    return bytes(data)


class Client(threading.Thread):
    """Does a number of random things; what went wrong with the good ones is in ``complaints``."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.rng = random.Random(seed)
        self.complaints: list[str] = []
        self.start()

    def run(self) -> None:
        for _ in range(12):
            try:
                self._once()
            except (OSError, AssertionError, ValueError, IndexError) as error:
                self.complaints.append(repr(error))

    def _once(self) -> None:
        match self.rng.randrange(5):
            case 0:
                status, answer = exchange(self.port, GOOD)
                text = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"]
                assert (status, text) == (200, TEXT)
            case 1:
                _, answer = exchange(self.port, STREAM)
                assert "".join(e["choices"][0]["text"] for e in events_of(answer)) == TEXT
            case 2:
                sock = connect(self.port)
                sock.sendall(STREAM)
                sock.recv(self.rng.randint(1, 2000))
                reset(sock)
            case 3:
                sock = connect(self.port)
                sock.sendall(self.rng.choice([GOOD, STREAM])[: self.rng.randint(1, 300)])
                sock.close()
            case _:
                with connect(self.port) as sock, contextlib.suppress(OSError):
                    sock.sendall(mutated(self.rng))
                    answer = read_all(sock)
                    assert not answer or int(answer.split(b" ", 2)[1]) < 500, answer[:200]


def test_a_crowd(start: Start) -> None:
    """C29, C36, C65 in small."""
    engine = FakeEngine(pace=0.001, per_step=3)
    server: Running = start(engine, ServerSettings(head_timeout=3, body_timeout=3, keep_alive=1))
    clients = [Client(server.port, seed) for seed in range(24)]
    for client in clients:
        client.join(60)
    assert [complaint for client in clients for complaint in client.complaints] == []
    wait_until(lambda: server.app.models.open == 0)
    wait_until(lambda: not engine.running)
    assert server.desk._by_request == {}
    loop = server.desk._loop
    assert loop is not None
    wait_until(lambda: len(asyncio.all_tasks(loop)) <= 3)  # the server, its desk's watch, nothing else for long
    assert exchange(server.port, get("/health/live"))[0] == 200
    assert exchange(server.port, GOOD)[0] == 200
