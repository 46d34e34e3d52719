"""Several models in one process: they come when asked for, leave when others need the room, and give memory back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.weights import Store
from headrace.weights.index import configured_index
from tests.e2e.server import PATIENCE, ServerProcess, serve

MIB = 1 << 20
LEFT_BEHIND = 90 * MIB
"""What models that have gone may leave in the allocator's half-empty pages (30 to 40 MiB were seen), however many went:
less than the weights of one, which are 92 MiB."""
WENT = 46 * MIB
"""What must go with a model at least: half of its weights."""
CALL = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def weights() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Store(cache / "headrace", index_url=configured_index(os.environ, Path.home())).resolve()


@pytest.fixture(scope="module")
def files(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model twice: two models, to the server."""
    folder = tmp_path_factory.mktemp("models")
    one, two = folder / "one.gguf", folder / "two.gguf"
    one.symlink_to(weights)
    two.symlink_to(weights)
    return one, two


def ask(server: ServerProcess, model: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json={**CALL, "model": model, **more}, timeout=60)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def loaded(server: ServerProcess) -> set[str]:
    metrics = server.metrics()
    return {name for name in ("one", "two") if metrics[f'headrace:model_loaded{{engine="0",model_name="{name}"}}']}


def wait_for(condition: Any, seconds: float = PATIENCE) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_models_take_turns_and_memory_returns(files: tuple[Path, Path]) -> None:
    one, two = files
    with serve(f"one={one}", f"two={two}", "--memory-budget", "300MiB", "--max-model-len", "512") as server:
        assert loaded(server) == {"one"}
        text = text_of(ask(server, "one"))
        assert "Paris" in text
        assert text_of(ask(server, "two")) == text
        assert loaded(server) == {"two"}
        sizes = []
        for name in ("one", "two") * 3:
            assert text_of(ask(server, name)) == text
            sizes.append(server.resident_anonymous())
        assert max(sizes) - min(sizes[1:]) < LEFT_BEHIND, [size // MIB for size in sizes]
        entries = httpx.get(f"{server.url}/v1/models", timeout=PATIENCE).json()["data"]
        assert [entry["id"] for entry in entries] == ["one", "two"]
        assert httpx.get(f"{server.url}/health", timeout=PATIENCE).status_code == 200
        assert server.stop() == 0, server.output()


def test_an_idle_model_leaves_and_its_memory_with_it(files: tuple[Path, Path]) -> None:
    with serve(f"one={files[0]}", "--keep-alive", "1s", "--kv-cache-memory", "64MiB") as server:
        sizes = []
        for _ in range(4):
            full = resident_in_use(server)
            wait_for(lambda: not loaded_one(server))
            assert httpx.get(f"{server.url}/health/ready", timeout=PATIENCE).status_code == 200
            wait_for(lambda full=full: server.resident_anonymous() < full - WENT)
            sizes.append(server.resident_anonymous())
        assert sizes[-1] - sizes[0] < LEFT_BEHIND, [size // MIB for size in sizes]
        assert "Paris" in text_of(ask(server, "one"))


def resident_in_use(server: ServerProcess) -> int:
    """Bytes while an answer is on its way: its model cannot leave before it is measured, however long that takes."""
    body = {**CALL, "model": "one", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=PATIENCE) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
        return server.resident_anonymous()


def loaded_one(server: ServerProcess) -> bool:
    return server.metrics()['headrace:model_loaded{engine="0",model_name="one"}'] == 1


def test_both_fit_and_answer_at_once(files: tuple[Path, Path]) -> None:
    one, two = files
    with serve(
        f"one={one}", f"two={two}", "--pin", "two", "--memory-budget", "1GiB", "--max-model-len", "512"
    ) as server:
        assert loaded(server) == {"one", "two"}
        texts: list[str] = []
        threads = [
            threading.Thread(target=lambda name=name: texts.append(text_of(ask(server, name, max_tokens=64))))
            for name in ("one", "two") * 4
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(texts) == 8
        assert len(set(texts)) == 1, "a model's answer depends on nothing but the request"
        assert server.stop() == 0, server.output()


def test_a_model_that_breaks_on_disk_is_one_models_trouble(weights: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    shutil.copy(weights, one)
    shutil.copy(weights, two)
    with serve(f"one={one}", f"two={two}", "--memory-budget", "300MiB", "--max-model-len", "512") as server:
        whole = two.read_bytes()
        two.write_bytes(whole[: len(whole) // 2])
        answer = ask(server, "two")
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "The model `two` could not be loaded."
        assert str(tmp_path) not in answer.text
        assert "two.gguf" in server.output(), "the log says why"
        assert "Paris" in text_of(ask(server, "one"))
        two.write_bytes(whole)
        wait_for(lambda: ask(server, "two").status_code == 200)
        assert ask(server, "three").status_code == 404


def test_a_new_version_goes_live_without_a_failed_call(files: tuple[Path, Path]) -> None:
    """Calls all the while, streams among them; the old version's memory is given back."""
    key = {"Authorization": "Bearer root"}
    with serve(f"one={files[0]}", "--max-model-len", "512", environment={"HEADRACE_API_KEY": "root"}) as server:
        url, stop, found = f"{server.url}/v1/completions", threading.Event(), list[tuple[int, str]]()

        def client(*, stream: bool) -> None:
            body = {**CALL, "model": "one", "max_tokens": 32, "stream": stream}
            while not stop.is_set():
                answer = httpx.post(url, json=body, headers=key, timeout=60)
                found.append((answer.status_code, answer.text.partition("text")[2] if stream else ""))
                assert not stream or answer.text.endswith("data: [DONE]\n\n"), answer.text[-200:]

        def act(action: str) -> httpx.Response:
            return httpx.post(f"{server.url}/admin/models/one", json={"action": action}, headers=key, timeout=60)

        threads = [threading.Thread(target=client, kwargs={"stream": number % 2 == 0}) for number in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(found) > 8)
        before = server.resident_anonymous()
        for version in (2, 3, 4, 5):
            answer = act("reload")
            assert (answer.status_code, answer.json()["version"]) == (200, version), answer.text
        served = len(found)
        wait_for(lambda: len(found) > served + 8)
        stop.set()
        for thread in threads:
            thread.join()
        assert {status for status, _ in found} == {200}
        wait_for(lambda: server.resident_anonymous() - before < LEFT_BEHIND)
        no_key = httpx.post(f"{server.url}/admin/models/one", json={"action": "reload"}, timeout=PATIENCE)
        assert no_key.status_code == 401


def test_tenants_cannot_find_each_others_prompts(files: tuple[Path, Path], tmp_path: Path) -> None:
    """The probe of a curious neighbour: the same prompt, and whether any of it was cached."""
    keys = tmp_path / "keys.txt"
    secrets = {
        name: subprocess.run(
            [sys.executable, "-m", "headrace", "keys", "create", name, "--file", str(keys), "--tenant", tenant],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for name, tenant in (("a", "a"), ("b", "b"), ("b2", "b"))
    }  # fmt: skip
    with serve(f"one={files[0]}", "--max-model-len", "512", "--api-key-file", str(keys)) as server:

        def cached(name: str) -> int:
            body = {**CALL, "prompt": "Our secret plan is this: " + "we will meet at the river. " * 12}
            headers = {"Authorization": f"Bearer {secrets[name]}"}
            answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60).json()
            return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert [cached(name) for name in ("a", "b", "a", "b2")] == [0, 0, cached("a"), cached("b")]
        assert cached("a") > 64
        assert httpx.get(f"{server.url}/metrics", timeout=PATIENCE).status_code == 401
        assert not any(secret in server.output() for secret in secrets.values())
