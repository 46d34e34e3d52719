"""Python's share: how much of a busy server's time goes to anything but the model.

    python -m benchmarks.python_share MODEL --users 64 --seconds 20 [--sample]

Starts a server, loads it with a closed loop of streams, and reads two sources at the beginning and at the end of a
window: the step metrics that the server exports, and the kernel's account of the event loop's thread. ``--sample`` asks
py-spy (if it is installed) where both threads are, for a finer split; its samples slow the server a little.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import describe
from tests.e2e.server import ServerProcess, serve

PARTS = (
    ("schedule", r"^Scheduler\.schedule|^schedule \(headrace/scheduler"),
    ("commit", r"^Scheduler\.commit|^commit \(headrace/scheduler"),
    ("marshal", r"(fill|results) \(headrace/backends/cpu"),
    ("run", r"run \(headrace/backends/cpu"),
    ("report", r"_settle \(headrace/engine"),
    ("deliver", r"deliver \(headrace/api/desk"),
    ("http", r"serve \(headrace/api/server"),
)
"""A stack belongs to the first part that one of its frames matches."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment; seconds."""

    now: float
    steps: float
    step_seconds: float
    overhead_seconds: float
    tokens: float
    loop_cpu: float


def read(server: ServerProcess) -> Reading:
    """Read everything at once, or nearly so."""
    metrics = server.metrics()

    def total(name: str) -> float:
        return sum(value for key, value in metrics.items() if key.split("{")[0] == name)

    # The process's first thread runs the event loop; the first number is its nanoseconds on a processor.
    account = Path(f"/proc/{server.pid}/task/{server.pid}/schedstat").read_text().split()
    return Reading(
        time.monotonic(),
        total("headrace:step_seconds_count"),
        total("headrace:step_seconds_sum"),
        total("headrace:step_overhead_seconds_sum"),
        total("vllm:generation_tokens_total"),
        int(account[0]) / 1e9,
    )


def wait_until_busy(server: ServerProcess, users: int, seconds: float = 60.0) -> None:
    """Returns when nine tenths of the users are being answered: somebody's prompt is always under way.

    Raises:
        TimeoutError: that never came.
    """
    until = time.monotonic() + seconds
    while server.metric("vllm:num_requests_running") < 0.9 * users:
        if time.monotonic() > until:
            raise TimeoutError(f"{users} requests are not being answered after {seconds:.0f} s")
        time.sleep(0.5)


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of the window's wall time, from 0 to 1; ``loop`` (HTTP, text) runs beside ``model``, on some core."""

    tokens_per_second: float
    step_ms: float
    model: float
    scheduling: float
    loop: float
    idle: float
    loop_us_per_token: float
    scheduling_us_per_token: float


def shares(before: Reading, after: Reading) -> Shares:
    """What the window between two readings was spent on."""
    wall, tokens = after.now - before.now, max(after.tokens - before.tokens, 1)
    steps = after.step_seconds - before.step_seconds
    overhead = after.overhead_seconds - before.overhead_seconds
    loop = after.loop_cpu - before.loop_cpu
    return Shares(
        tokens_per_second=tokens / wall,
        step_ms=1e3 * steps / max(after.steps - before.steps, 1),
        model=(steps - overhead) / wall,
        scheduling=overhead / wall,
        loop=loop / wall,
        idle=max(0.0, 1 - steps / wall),
        loop_us_per_token=1e6 * loop / tokens,
        scheduling_us_per_token=1e6 * overhead / tokens,
    )


def parts_of(stacks: str) -> dict[str, float]:
    """py-spy's raw stacks → each part's share of all samples of threads that were not asleep."""
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = stack.split(";")
        part = next((name for name, pattern in PARTS if any(re.search(pattern, frame) for frame in frames)), "other")
        counts[part] += int(number)
    whole = sum(counts.values()) or 1
    return {name: counts[name] / whole for name in (*(name for name, _ in PARTS), "other") if counts[name]}


def sample(server: ServerProcess, seconds: int) -> dict[str, float]:
    """Where the threads are when they are not asleep; empty without py-spy."""
    spy = shutil.which("py-spy") or shutil.which(str(Path(sys.executable).with_name("py-spy")))
    if spy is None:
        print("py-spy is not installed: no finer split", file=sys.stderr)
        return {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stacks"
        command = [spy, "record", "-p", str(server.pid), "-d", str(seconds), "-r", "200", "-f", "raw", "-o", str(out)]
        subprocess.run([*command, "-t", "--nonblocking"], capture_output=True, check=True)
        return parts_of(out.read_text())


def main() -> None:
    """Measure, print, and write a file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--out", type=Path, help="write the result there, as JSON")
    options = parser.parse_args()
    with serve(options.model, "--max-model-len", "2048") as server:
        command = [sys.executable, "-m", "headrace", "bench", "--url", server.url, "--concurrency", str(options.users)]
        load = subprocess.Popen(
            [*command, "--duration", str(options.seconds * (2 if options.sample else 1) + 60)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until_busy(server, options.users)
            before = read(server)
            time.sleep(options.seconds)
            found = shares(before, read(server))
            parts = sample(server, options.seconds) if options.sample else {}
        finally:
            load.terminate()
            load.wait()
    document = {"machine": describe(), "users": options.users, "shares": asdict(found), "sampled": parts}
    print(json.dumps({key: document[key] for key in ("users", "shares", "sampled")}, indent=2))
    python = found.scheduling + found.loop
    print(f"Python: {python:.1%} of wall time ({found.scheduling:.1%} between steps, {found.loop:.1%} beside them)")
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
