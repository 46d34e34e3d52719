"""Ollama's `/api/pull` over a real download, from a hub on the loopback: refused, left, cut off and gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from headrace.weights import Store
from headrace.weights.index import configured_index
from tests.e2e.server import ServerProcess, serve
from tests.weights.loopback import serving
from tests.weights.test_hub import Hub

NAME = "hf.co/org/name"


@pytest.fixture(scope="module")
def weights() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Store(cache / "headrace", index_url=configured_index(os.environ, Path.home())).resolve()


@pytest.fixture
def hub(weights: Path) -> Iterator[Hub]:
    with serving(Hub({"model.gguf": weights.read_bytes()})) as site:
        assert isinstance(site, Hub)
        yield site


@pytest.fixture
def server(hub: Hub, weights: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": "127.0.0.1",
    }
    with serve(
        f"one={weights}", "--cache-dir", str(tmp_path / "cache"), "--max-model-len", "512", environment=environment
    ) as process:
        yield process


def fetched(hub: Hub) -> list[int]:
    """Where each fetch of the weights began."""
    path = "GET /org/name/resolve/"
    asked = [span for name, span, _ in hub.requests if name.startswith(path)]
    return [int(span.removeprefix("bytes=").split("-")[0]) if span else 0 for span in asked]


def test_a_pull_is_refused_left_cut_off_and_served(server: ServerProcess, hub: Hub) -> None:
    client: Any = ollama.Client(server.url, timeout=60)
    with pytest.raises(ollama.ResponseError) as refused:
        client.pull("no such/../model")
    assert refused.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="the hub has no such model"):
        client.pull("org/absent")

    hub.hold_at = 24 << 20
    body = {"model": NAME}
    with httpx.stream("POST", f"{server.url}/api/pull", json=body, timeout=60) as stream:
        assert stream.headers["content-type"] == "application/x-ndjson"
        for line in stream.iter_lines():
            if json.loads(line).get("completed", 0) > 10 << 20:
                break
    for _ in range(3):  # the server, too, hears first that the client has left, then this
        assert "org/name" not in str(client.list())
    hub.released.set()
    size = len(hub.files["model.gguf"])

    hub.cut = [30 << 20]
    lines = list(client.pull(NAME, stream=True))
    assert [lines[0].status, lines[-1].status] == ["pulling manifest", "success"]
    told = [(line.completed, line.total) for line in lines if line.total]
    assert told
    assert all(total == size for _, total in told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    begins = fetched(hub)
    assert begins == [0, 0, 30 << 20], "left; begun again, for a file of the hub's is kept whole or not at all; cut off"
    assert client.generate("org/name", "The capital of France is", raw=True, options={"num_predict": 4}).response
    assert [line.status for line in client.pull(NAME, stream=True)][-1] == "success"
    assert fetched(hub) == begins, "what is there is not fetched again"
