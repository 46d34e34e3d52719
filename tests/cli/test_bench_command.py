"""``headrace bench`` as a whole, against a scripted server on a thread."""

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.bench import Load, levels
from tests.bench.scripted_server import Script, Scripted, json_answer, obedient, scripted
from tests.cli.commands import command


@contextlib.contextmanager
def server(script: Script) -> Iterator[Scripted]:
    found: list[Scripted] = []
    ready, over = threading.Event(), threading.Event()

    async def session() -> None:
        async with scripted(script) as state:
            found.append(state)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(session()))
    thread.start()
    assert ready.wait(60)
    try:
        yield found[0]
    finally:
        over.set()
        thread.join(60)


def test_levels_json_and_plain_lines(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    words = ["--concurrency", "1,3", "--input-len", "5-9", "--output-len", "4", "--json", str(file), "--no-progress"]
    with server(obedient(gap=0.001)) as state:
        result = command("bench", "--url", state.url, *words, "--pid", str(os.getpid()), "--api-key", "hunter2")
    assert (result.code, result.err) == (0, "")
    assert len(result.out.splitlines()) == 2
    data = json.loads(file.read_text())
    assert [level["label"] for level in data["levels"]] == ["1 at a time", "3 at a time"]
    for level in data["levels"]:
        assert (level["requests"], level["succeeded"], level["output_tokens"]) == (8, 8, 32)
        assert level["server_rss_mb"] > 1
        assert level["client_cpu_s"] > 0
    assert data["settings"]["input_len"] == "5-9"
    assert data["settings"]["model"] == "scripted"
    assert "hunter2" not in file.read_text() + result.out
    assert len(state.bodies) == 2 + 8 + 8, "two of warm-up, eight in each level"
    assert {body["model"] for body in state.bodies} == {"scripted"}


def test_chat_sends_calibrated_texts() -> None:
    words = ["--endpoint", "chat", "--concurrency", "2", "--input-len", "45", "--output-len", "2", "--warmup", "0"]
    with server(obedient()) as state:
        result = command("bench", "--url", state.url, *words)
    assert result.code == 0
    assert "in/req: 45.0" in result.out
    assert all(head.startswith("POST /v1/chat/completions") for head in state.heads if head.startswith("POST"))


def test_a_fixed_arrival_rate() -> None:
    with server(obedient()) as state:
        result = command("bench", "--url", state.url, "--rate", "50", "--duration", "0.5", "--output-len", "2")
    assert result.code == 0
    assert "load: 50 a second" in result.out


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "out.png"
    with server(obedient()) as state:
        command("bench", "--url", state.url, "--concurrency", "1,2", "--output-len", "2", "--plot", str(file))
    assert file.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_load_is_not_even_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.bench.report.find_spec", lambda name: None)
    result = command("bench", "--url", "http://127.0.0.1:1", "--plot", "x.png")
    assert result.code == 2
    assert "pip install 'headrace[plots]'" in result.err


def test_failures_are_shown_and_all_failing_is_exit_code_1() -> None:
    full = [json_answer(429, {"error": {"message": "queue full"}})]
    with server(lambda _: full) as state:
        result = command("bench", "--url", state.url, "--concurrency", "2", "--warmup", "0")
    assert result.code == 1
    assert "errors: 8 http 429" in result.out
    assert "queue full" in result.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--url", "http://127.0.0.1:1"], "no connection to 127.0.0.1:1"),
        (["--url", "localhost"], "is not like http://host:port"),
        (["--concurrency", "1", "--rate", "2"], "concurrency and rate contradict"),
        (["--trace", "x.csv", "--input-len", "5"], "input_len and trace contradict"),
        (["--concurrency", "0"], "must be whole numbers from 1"),
        (["--input-len", "0"], "is not a length"),
        (["--endpoint", "chat", "--prompt-kind", "ids", "--model", "m"], "takes text only"),
        (["--token-ids", "9-1"], "is not a range"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: list[str], complaint: str) -> None:
    result = command("bench", *words)
    assert result.code in (1, 2)
    assert result.err.count("\n") == 1
    assert complaint in result.err


def test_default_numbers_of_requests() -> None:
    assert [level.requests for level in levels(Load(concurrency=(1, 16)))] == [8, 32]
    assert [(level.requests, level.seconds) for level in levels(Load(duration=5.0))] == [(None, 5.0)] * 4
    assert [(level.requests, level.seconds) for level in levels(Load(rate=(2.0,)))] == [(None, 30.0)]
    assert [(level.requests, level.seconds) for level in levels(Load(rate=(2.0,), requests=9))] == [(9, None)]
