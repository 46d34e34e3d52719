"""Us and every installed peer, on the same weights and the same work, in one run.

    python -m benchmarks.compare --users 1,4,16,32,64,128 [--peers FOLDER] [--model smollm2|1b] [--repeats 3]

Closed loop, 128 tokens in and 128 out unless told otherwise; servers one after another, the whole round repeated, the
median of the repeats reported with its spread. Servers are measured over HTTP by ``headrace bench`` on the same
machine; OpenVINO in process. Writes DATE-NAME.json, .md and .png into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from benchmarks.contestants import Contestant, contestants, versions
from benchmarks.machine import describe
from benchmarks.show import ratios, table, write_plot

RESULTS = Path(__file__).with_name("results")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str, body: bytes | None = None) -> bool:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return int(reply.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its children."""
    total, todo = 0.0, [pid]
    while todo:
        one = todo.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:")) / 1e3
    return total


@contextlib.contextmanager
def started(one: Contestant, users: int, log: IO[bytes]) -> Iterator[tuple[str, dict[str, float]]]:
    """A running server: its address, the seconds from its start to its first token, its memory when idle."""
    port = free_port()
    url, begin = f"http://127.0.0.1:{port}", time.perf_counter()
    process = subprocess.Popen(
        one.command(port, users),
        stdout=log,
        stderr=log,
        env={**os.environ, **one.environment},
        start_new_session=True,
    )
    try:
        while not answers(f"{url}/health"):
            if process.poll() is not None or time.perf_counter() - begin > 400:
                raise RuntimeError(f"{one.name} did not start: see {log.name}")
            time.sleep(0.01)
        body = {"model": "m" if one.name != "headrace" else None, "prompt": "Hello", "max_tokens": 1}
        answers(f"{url}/v1/completions", json.dumps(body).encode())
        first_token = time.perf_counter() - begin
        time.sleep(2)
        yield url, {"first_token_s": round(first_token, 3), "idle_rss_mb": round(resident_mb(process.pid), 1)}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def bench(url: str, users: list[int], options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """``headrace bench`` on a running server: one result a level."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.json"
        command = [sys.executable, "-m", "headrace", "bench", "--url", url, "--json", str(file), "--no-progress"]
        command += ["--concurrency", ",".join(map(str, users)), "--seed", str(seed)]
        command += ["--input-len", str(options.input_len), "--output-len", str(options.output_len)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        levels: list[dict[str, Any]] = json.loads(file.read_text())["levels"]
        return levels


def in_process(one: Contestant, users: list[int], options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A script inside the contestant's own environment does the same rounds without HTTP."""
    lengths = {"input_len": options.input_len, "output_len": options.output_len, "seed": seed}
    work = [{"users": n, "requests": max(8, 2 * n), **lengths} for n in users]
    lines = "".join(json.dumps(level) + "\n" for level in work)
    environment = {**os.environ, **one.environment}
    run = subprocess.run(one.command(0, 0), input=lines, capture_output=True, text=True, check=True, env=environment)
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def measure(one: Contestant, options: argparse.Namespace, seed: int, log: IO[bytes]) -> list[dict[str, Any]]:
    """All levels of one contestant, once."""
    levels = [users for users in options.users if users <= one.most_users]
    if one.in_process:
        return in_process(one, levels, options, seed)
    rows = []
    for users in [[n] for n in levels] if one.per_level else [levels]:
        with started(one, users[-1], log) as (url, start):
            rows += [{**row, **start} for row in bench(url, users, options, seed)]
    return rows


def median_rows(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Per level: the run with the median throughput, with the range of all runs beside it."""
    rows = []
    for same in zip(*runs, strict=True):
        rates = [row["output_tokens_per_s"] for row in same]
        middle = min(same, key=lambda row: abs(row["output_tokens_per_s"] - statistics.median(rates)))
        rows.append({**middle, "output_tokens_per_s_range": [min(rates), max(rates)]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16, 32, 64])
    parser.add_argument("--peers", type=Path, help="folder of the installed peers; without it only headrace runs")
    parser.add_argument("--model", choices=("smollm2", "1b"), default="smollm2")
    parser.add_argument("--isa", choices=("avx512", "avx2"), help="ours and llama.cpp on this instruction set")
    parser.add_argument("--weights", help="only contestants with these weights: bf16, int8, int4")
    parser.add_argument("--only", help="comma-separated names of contestants")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--name", default="compare", help="goes into the names of the result files")
    options = parser.parse_args()
    chosen = [
        one
        for one in contestants(options.model, options.peers, options.isa)
        if options.weights in (None, one.weights) and (not options.only or one.name in options.only.split(","))
    ]
    machine = {**describe(), "peers": {} if options.peers is None else versions(options.peers)}
    runs: dict[str, list[list[dict[str, Any]]]] = {}
    with tempfile.NamedTemporaryFile("wb", suffix=".log", delete=False) as log:
        for repeat in range(options.repeats):
            for one in chosen:
                key = f"{one.name} {one.weights}"
                print(f"round {repeat + 1} of {options.repeats}: {key}", flush=True)
                runs.setdefault(key, []).append(measure(one, options, repeat, log))
                print(table({key: runs[key][-1]}), flush=True)
    results = {key: median_rows(all_runs) for key, all_runs in runs.items()}
    stem = RESULTS / f"{time.strftime('%Y-%m-%d')}-{options.name}"
    settings = {key: str(value) for key, value in vars(options).items() if key != "peers"}
    data = {"machine": machine, "settings": settings, "results": results}
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    shown = f"{ratios(results)}\n\n{ratios(results, fastest=True)}\n\n{table(results)}\n"
    stem.with_suffix(".md").write_text(shown)
    write_plot(stem.with_suffix(".png"), results, f"{options.model}, {options.input_len} in / {options.output_len} out")
    print(shown)


if __name__ == "__main__":
    main()
