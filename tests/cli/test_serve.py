"""Starting and not starting: what is wrong is said in one line, quickly, with the right exit code."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import command


def test_a_model_that_is_not_there() -> None:
    result = command("serve", "./no-such-model", "--port", "0")
    assert (result.code, result.err) == (1, "headrace: ./no-such-model: there is no such file or directory\n")


def test_a_model_that_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\xff" * 100)
    result = command("serve", str(file), "--port", "0")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert str(file) in result.err


def test_a_chat_template_that_does_not_compile_ends_the_server(model: Path, tmp_path: Path) -> None:
    content = model.read_bytes()
    assert b"{% endfor %}" in content
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content.replace(b"{% endfor %}", b"{% endfoo %}", 1))
    words = [sys.executable, "-m", "headrace", "serve", str(broken), "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "headrace: chat template 'default'" in done.stderr.splitlines()[-1]


def test_a_taken_port_is_found_before_the_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = command("serve", "./no-such-model", "--port", str(port))
    assert result.code == 2
    assert f"127.0.0.1:{port}" in result.err
    assert result.err.count("\n") == 1


def test_settings_that_contradict_each_other() -> None:
    result = command("serve", "--port", "0", "--max-num-seqs", "64", "--max-num-batched-tokens", "32")
    assert result.code == 2
    assert "max_num_seqs (64) is above max_num_batched_tokens (32)" in result.err


def test_a_longer_context_than_the_model_has(model: Path) -> None:
    result = command("serve", str(model), "--port", "0", "--max-model-len", "9000")
    assert result.code == 2
    assert "9000 is above the 8192 tokens" in result.err


def test_a_context_that_does_not_fit_comes_with_the_plan_and_a_fix(model: Path) -> None:
    words = ["--port", "0", "--kv-cache-memory", "4MiB", "--max-model-len", "8192", "--log-level", "error"]
    result = command("serve", str(model), *words)
    assert result.code == 1
    assert re.search(r"^weights +\d", result.err, re.MULTILINE)
    assert re.search(r"^fix: .+", result.err, re.MULTILINE)


@pytest.fixture(scope="module")
def started(model: Path) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server in a process of its own, its address, and its log until it was ready."""
    command_line = [sys.executable, "-m", "headrace", "serve", str(model), "--port", "0", "--kv-cache-memory", "64MiB"]
    command_line += ["--served-model-name", "one", "two", "--max-num-batched-tokens", "512"]
    with subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True) as process:
        lines: list[str] = []
        while process.stderr is not None and not (lines and " ready on " in lines[-1]):
            line = process.stderr.readline()
            if not line:
                raise RuntimeError("".join(lines))
            lines.append(line)
        address = re.search(r"http://[\d.:]+", lines[-1])
        yield process, address[0] if address else "", lines
        process.kill()


def test_it_answers_under_the_names_it_was_given(started: tuple[subprocess.Popen[str], str, list[str]]) -> None:
    _, url, _ = started
    body = {"model": "two", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        assert "Paris" in json.load(answer)["choices"][0]["text"]
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        assert [entry["id"] for entry in json.load(answer)["data"]] == ["one", "two"]


def test_the_start_is_explained(started: tuple[subprocess.Popen[str], str, list[str]]) -> None:
    _, url, lines = started
    log = "".join(lines)
    assert re.search(r"memory: KV cache +[\d.]+ MiB +\d+ blocks", log)
    assert re.search(r"after [\d.]+ s \(find [\d.]+, read [\d.]+, .*load [\d.]+", log)
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        metrics = answer.read().decode()
    for phase in ("find", "read", "load", "tokenizer", "memory"):
        assert f'headrace:startup_phase_seconds{{phase="{phase}"}}' in metrics


def test_sigterm_ends_it_with_0(started: tuple[subprocess.Popen[str], str, list[str]]) -> None:
    process, _, _ = started
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
