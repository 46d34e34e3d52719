"""Us and every installed peer, on the same weights and the same work, in one run.

    python -m benchmarks.compare --users 1,4,16,32,64,128 [--peers FOLDER] [--model smollm2|1b] [--repeats 3]

Closed loop, 128 tokens in and 128 out unless told otherwise. Contestants take turns at each number of users, all of it
repeated; the median of the repeats is reported with its spread. Servers are measured over HTTP by ``headrace bench`` on
the same machine; OpenVINO in process. Writes DATE-NAME.json, .md and .png into benchmarks/results/.

    python -m benchmarks.compare --users 16 --shared-prefix 512 --input-len 32 --output-len 64 --requests 48 ...

What prefix caches save: with a shared prefix, servers take part a second time with theirs turned off.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.contestants import Contestant, contestants, versions
from benchmarks.machine import describe
from benchmarks.show import pair, ratios, table, write_plot

RESULTS = Path(__file__).with_name("results")
Row = dict[str, Any]
"""What was measured of one contestant with one number of users, once."""
Level = Callable[[int, int], Row]
"""Measures a contestant with so many users, by a seed."""


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
def running(one: Contestant, users: int, log: IO[bytes]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The contestant's process, in a group of its own, and its address if it is a server."""
    port = free_port()
    process = subprocess.Popen(
        one.command(port, users),
        stdin=subprocess.PIPE if one.in_process else None,
        stdout=subprocess.PIPE if one.in_process else log,
        stderr=log,
        env={**os.environ, **one.environment},
        start_new_session=True,
        text=True,
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def server(one: Contestant, users: int, options: argparse.Namespace, log: IO[bytes]) -> Iterator[Level]:
    """A server that answers; its rows say, too, how long it took to its first token and what it holds when idle."""
    begin = time.perf_counter()
    with running(one, users, log) as (url, process):
        while not answers(f"{url}/health"):
            if process.poll() is not None or time.perf_counter() - begin > 400:
                raise RuntimeError(f"{one.name} did not start: see {log.name}")
            time.sleep(0.01)
        body = {"model": "m" if not one.ours else None, "prompt": "Hello", "max_tokens": 1}
        answers(f"{url}/v1/completions", json.dumps(body).encode())
        first_token = time.perf_counter() - begin
        time.sleep(2)
        start = {"first_token_s": round(first_token, 3), "idle_rss_mb": round(resident_mb(process.pid), 1)}
        with waiting(process) as awake:

            def level(users: int, seed: int) -> Row:
                with awake():
                    return {**bench(url, users, options, seed), **start}

            yield level


@contextlib.contextmanager
def script(one: Contestant, options: argparse.Namespace, log: IO[bytes]) -> Iterator[Level]:
    """A contestant without HTTP: a script in its own environment reads a line a level and answers each with one."""
    with running(one, 0, log) as (_, process):
        assert process.stdin is not None
        assert process.stdout is not None
        sent, answered = process.stdin, process.stdout

        def answer() -> str:
            for line in answered:
                if line.startswith("{"):
                    return line
            raise RuntimeError(f"{one.name} has ended: see {log.name}")

        json.loads(answer())
        with waiting(process) as awake:

            def level(users: int, seed: int) -> Row:
                lengths = {"input_len": options.input_len, "output_len": options.output_len, "seed": seed}
                work = {
                    "users": users,
                    "requests": requests(users, options),
                    "shared": options.shared_prefix,
                    **lengths,
                }
                with awake():
                    sent.write(json.dumps(work) + "\n")
                    sent.flush()
                    row: Row = json.loads(answer())
                    return row

            yield level


@contextlib.contextmanager
def waiting(process: subprocess.Popen[str]) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Stopped in its tracks but while it is measured: whoever waits for its turn costs the others no processor time."""

    @contextlib.contextmanager
    def awake() -> Iterator[None]:
        os.killpg(process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGSTOP)

    os.killpg(process.pid, signal.SIGSTOP)
    yield awake


def anew(one: Contestant, options: argparse.Namespace, log: IO[bytes]) -> Level:
    """For servers that divide their memory by the number of users when they start."""

    def level(users: int, seed: int) -> Row:
        with server(one, users, options, log) as measure:
            return measure(users, seed)

    return level


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(number) for number in text.split(",")]


def requests(users: int, options: argparse.Namespace) -> int:
    if not options.requests:
        return max(8, 2 * users)
    return int(options.requests[options.users.index(users) % len(options.requests)])


def bench(url: str, users: int, options: argparse.Namespace, seed: int) -> Row:
    """``headrace bench`` on a running server."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.json"
        command = [sys.executable, "-m", "headrace", "bench", "--url", url, "--json", str(file), "--no-progress"]
        command += ["--concurrency", str(users), "--requests", str(requests(users, options)), "--seed", str(seed)]
        command += ["--input-len", str(options.input_len), "--output-len", str(options.output_len)]
        command += ["--shared-prefix", str(options.shared_prefix)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (row,) = json.loads(file.read_text())["levels"]
        return dict(row)


def median_rows(runs: Mapping[int, list[Row]]) -> list[Row]:
    """Per number of users: the run with the median throughput, with the range of all runs beside it."""
    rows = []
    for same in runs.values():
        rates = [row["output_tokens_per_s"] for row in same]
        middle = min(same, key=lambda row: abs(row["output_tokens_per_s"] - statistics.median(rates)))
        rows.append({**middle, "output_tokens_per_s_range": [min(rates), max(rates)]})
    return rows


def measure_all(chosen: Sequence[Contestant], options: argparse.Namespace) -> dict[str, dict[int, list[Row]]]:
    """Every contestant's runs by number of users. They take turns level by level, so that a slow minute of the machine
    meets all of them."""
    runs: dict[str, dict[int, list[Row]]] = {f"{one.name} {one.weights}": {} for one in chosen}
    with tempfile.NamedTemporaryFile("wb", suffix=".log", delete=False) as log, contextlib.ExitStack() as stack:
        levels: list[Level] = []
        for one in chosen:
            print(f"starting {one.name} {one.weights}", flush=True)
            if one.in_process:
                levels.append(stack.enter_context(script(one, options, log)))
            elif one.per_level:
                levels.append(anew(one, options, log))
            else:
                levels.append(stack.enter_context(server(one, max(options.users), options, log)))
        for repeat, users in itertools.product(range(options.repeats), options.users):
            for one, level in zip(chosen, levels, strict=True):
                if users <= one.most_users:
                    row, key = level(users, repeat), f"{one.name} {one.weights}"
                    runs[key].setdefault(users, []).append(row)
                    rate, wait = row["output_tokens_per_s"], pair(row.get("ttft_ms"), "p50", "p95", 0)
                    print(f"{repeat + 1}/{options.repeats} {users:4} users: {key:30} {rate:7.0f} {wait}", flush=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=numbers, default=[1, 4, 16, 32, 64])
    parser.add_argument("--peers", type=Path, help="folder of the installed peers; without it only headrace runs")
    parser.add_argument("--model", choices=("smollm2", "1b"), default="smollm2")
    parser.add_argument("--isa", choices=("avx512", "avx2"), help="ours and llama.cpp on this instruction set")
    parser.add_argument("--weights", help="only contestants with these weights: bf16, int8, int4")
    parser.add_argument("--only", help="comma-separated names of contestants")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--shared-prefix", type=int, default=0, help="tokens that all prompts begin with")
    parser.add_argument(
        "--requests",
        type=numbers,
        help="of all levels, or one number for each of --users; without it twice the users, and at least 8",
    )
    parser.add_argument("--name", default="compare", help="goes into the names of the result files")
    options = parser.parse_args()
    # Whoever ends this ends the servers, too: they stand still, and would do so for ever.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.requests and len(options.requests) not in (1, len(options.users)):
        parser.error("--requests must be one number or as many as --users has")
    if options.repeats % 2 == 0:
        parser.error("--repeats must be odd: an even number of runs has no middle one")
    chosen = [
        one
        for one in contestants(options.model, options.peers, options.isa, shared=options.shared_prefix > 0)
        if options.weights in (None, one.weights) and (not options.only or one.name in options.only.split(","))
    ]
    machine = {**describe(), "peers": {} if options.peers is None else versions(options.peers)}
    results = {key: median_rows(runs) for key, runs in measure_all(chosen, options).items()}
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
