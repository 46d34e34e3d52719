"""A real `headrace serve` process on a loopback port, for tests and benchmarks that need the whole thing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

PATIENCE = 60.0
"""Seconds until a test gives up on what comes at once on an idle machine. Only a failure ever takes so long."""


@dataclass
class ServerProcess:
    """A started server: where it answers, its process, and what it printed."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, name with its labels → value."""
        text = httpx.get(f"{self.url}/metrics", timeout=PATIENCE).text
        samples = re.findall(r"^([a-zA-Z_:][^ ]*(?:\{.*\})?) ([^ ]+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in samples}

    def metric(self, name: str) -> float:
        """The sum of one metric's samples over all labels."""
        found = [value for key, value in self.metrics().items() if key.split("{")[0] == name]
        if not found:
            raise KeyError(name)
        return sum(found)

    def resident_anonymous(self) -> int:
        """RssAnon in bytes: what the process really holds, its mapped files left out."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        if match is None:
            raise ValueError("no RssAnon in /proc/PID/status")
        return int(match.group(1)) * 1024

    def wait_until_idle(self, seconds: float = PATIENCE) -> None:
        """Returns when nothing runs or waits and no block is held; raises what it saw last if that never comes."""
        seen: dict[str, float] = {}
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            seen = {
                name: self.metric(f"vllm:{name}")
                for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            }
            if not any(seen.values()):
                return
            time.sleep(0.05)
        raise TimeoutError(f"the server is not idle after {seconds} s: {seen}")

    def stop(self, grace: float = PATIENCE) -> int:
        """SIGTERM, then the exit code; SIGKILL if it does not come within ``grace`` seconds."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(grace)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def serve(
    *arguments: str, environment: Mapping[str, str] | None = None, ready: float = 120.0
) -> Iterator[ServerProcess]:
    """Starts ``headrace serve ARGUMENTS`` and gives it when it is ready; stops it at the end. It takes a free port
    and says in its log, which must not be silenced, which one: a port chosen here could be taken before it is its.

    Raises:
        RuntimeError: the process ended or was not ready in time; the message holds what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        command = [sys.executable, "-m", "headrace", "serve", *arguments, "--host", "127.0.0.1", "--port", "0"]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )
        server = ServerProcess("", process, log)
        try:
            until = time.monotonic() + ready
            while True:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{' '.join(command)} did not get ready:\n{server.output()}")
                said = re.search(r" ready on (http://[\d.:]+) ", server.output())
                if said is not None:
                    server.url = said[1]
                    if httpx.get(f"{server.url}/health/ready", timeout=PATIENCE).status_code == 200:
                        break
                time.sleep(0.02)
            yield server
        finally:
            server.stop()
