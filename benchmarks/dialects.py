"""What each dialect's stream costs beside the plain completions route: the same tokens, asked for in turns.

    python -m benchmarks.dialects [MODEL] [--users 64] [--tokens 96] [--rounds 1] [--only tgi,chat]

Every user has a prompt of its own, and every dialect gets the same one: greedy answers are then the same tokens, and
the prefix cache has the prompts for all of them. A run of completions stands before and after each run of another;
its rate is divided by their mean; completions themselves take part too, to show what is noise. Rounds are added to
those of the day's benchmarks/results/DATE-dialects.json if they had the same settings.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import describe
from headrace.bench.workload import WORDS
from tests.e2e.server import ServerProcess, serve

RESULTS = Path(__file__).with_name("results")
MODEL = "smollm2-135m-instruct"
Body = Callable[[str, list[dict[str, str]], int], dict[str, Any]]
"""Of the prompt as the model gets it, the messages that it was made of, and the answer's length."""


def chat(text: str, messages: list[dict[str, str]], tokens: int) -> dict[str, Any]:
    return {"model": MODEL, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}


def completions(text: str, messages: list[dict[str, str]], tokens: int) -> dict[str, Any]:
    return {"model": MODEL, "prompt": text, "max_tokens": tokens, "temperature": 0, "stream": True}


def responses(text: str, messages: list[dict[str, str]], tokens: int) -> dict[str, Any]:
    return {"model": MODEL, "input": messages, "max_output_tokens": tokens, "temperature": 0, "stream": True}


def ollama(tokens: int) -> dict[str, Any]:
    return {"model": MODEL, "options": {"num_predict": tokens, "temperature": 0}, "stream": True}


DIALECTS: dict[str, tuple[str, Body]] = {
    "completions": ("/v1/completions", completions),
    "chat": ("/v1/chat/completions", chat),
    "chat with usage": (
        "/v1/chat/completions",
        lambda *asked: chat(*asked) | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "completions with token ids": ("/v1/completions", lambda *asked: completions(*asked) | {"return_token_ids": True}),
    "completions with logprobs": ("/v1/completions", lambda *asked: completions(*asked) | {"logprobs": 0}),
    "responses": ("/v1/responses", responses),
    "anthropic": ("/v1/messages", chat),
    "tgi": ("/generate_stream", lambda text, _, n: {"inputs": text, "parameters": {"max_new_tokens": n}}),
    "ollama generate": ("/api/generate", lambda text, _, n: {**ollama(n), "prompt": text, "raw": True}),
    "ollama chat": ("/api/chat", lambda _, messages, n: {**ollama(n), "messages": messages}),
}


class Sink(asyncio.Protocol):
    """Sends a request and throws the answer away, but for its first line."""

    def __init__(self, request: bytes) -> None:
        self.over: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._request = request
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._head = self._head or data

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(self._head.partition(b"\r\n")[0])


async def ask_all(server: ServerProcess, path: str, bodies: list[dict[str, Any]]) -> None:
    """All at once, to the end of the last answer."""
    host, port = server.url.removeprefix("http://").split(":")

    async def one(body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
        _, sink = await asyncio.get_running_loop().create_connection(lambda: Sink(request), host, int(port))
        line = await sink.over
        if b" 200 " not in line:
            raise SystemExit(f"{path}: {line.decode()}")

    await asyncio.gather(*map(one, bodies))


def cpu_seconds(pid: int) -> float:
    """A process's processor time, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Runs:
    """One server and everybody's prompts."""

    def __init__(self, server: ServerProcess, users: int, tokens: int) -> None:
        self._server = server
        self._tokens = tokens
        self._asked: list[tuple[str, list[dict[str, str]]]] = []
        for user in range(users):
            first, second = WORDS[user % len(WORDS)], WORDS[(7 * user + 3) % len(WORDS)]
            messages = [{"role": "user", "content": f"Write a long story about a {first} and a {second}."}]
            shown = httpx.post(f"{server.url}/chat_tokenize", json={"model": MODEL, "messages": messages}, timeout=30)
            self._asked.append((shown.raise_for_status().json()["templated_text"], messages))

    def run(self, name: str) -> tuple[float, float, int]:
        """Tokens a second, the server's processor microseconds a token, and tokens."""
        path, body = DIALECTS[name]
        bodies = [body(text, messages, self._tokens) for text, messages in self._asked]
        tokens, cpu = self._server.metric("vllm:generation_tokens_total"), cpu_seconds(self._server.pid)
        began = time.perf_counter()
        asyncio.run(ask_all(self._server, path, bodies))
        wall = time.perf_counter() - began
        cpu = cpu_seconds(self._server.pid) - cpu
        made = int(self._server.metric("vllm:generation_tokens_total") - tokens)
        return made / wall, 1e6 * cpu / made, made


def one_round(runs: Runs, names: list[str]) -> dict[str, dict[str, float]]:
    """Each dialect's rate and processor time a token, over the mean of the two runs of completions around it."""
    ratios: dict[str, dict[str, float]] = {}
    before = runs.run("completions")
    for name in names:
        found, after = runs.run(name), runs.run("completions")
        if found[2] != before[2]:
            raise SystemExit(f"{name} made {found[2]} tokens, completions {before[2]}: these are not the same answers")
        speed, cpu = ((before[i] + after[i]) / 2 for i in (0, 1))
        ratios[name] = {"tokens_per_s": round(found[0] / speed, 4), "cpu_per_token": round(found[1] / cpu, 4)}
        print(f"{name:28} {found[0]:7.0f} tokens/s {ratios[name]}", flush=True)
        before = after
    return ratios


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The median of each ratio over the rounds, with its range."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in rounds for name in each):
        for kind in ("tokens_per_s", "cpu_per_token"):
            values = [each[name][kind] for each in rounds if name in each]
            entry = {"median": round(statistics.median(values), 3), "range": [min(values), max(values)]}
            found.setdefault(name, {"rounds": len(values)})[kind] = entry
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=MODEL)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", type=lambda text: text.split(","))
    options = parser.parse_args()
    names = options.only or list(DIALECTS)
    settings = {"users": options.users, "tokens": options.tokens, "model": Path(options.model).name}
    file = RESULTS / f"{time.strftime('%Y-%m-%d')}-dialects.json"
    earlier = json.loads(file.read_text()) if file.exists() else {}
    rounds = earlier["rounds"] if earlier.get("settings") == settings else []
    flags = ("--max-model-len", "2048", "--served-model-name", MODEL)
    with serve(options.model, *flags) as server:
        runs = Runs(server, options.users, options.tokens)
        runs.run("completions")  # the cache has the prompts from here on
        for _ in range(options.rounds):
            rounds.append(one_round(runs, names))
            document = {"machine": describe(), "settings": settings, "summary": summary(rounds), "rounds": rounds}
            file.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(summary(rounds), indent=1))


if __name__ == "__main__":
    main()
