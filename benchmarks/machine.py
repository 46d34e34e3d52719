"""What a result was measured on: without it a number means nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

from headrace import __version__

ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


def first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1).strip() if match else ""


def describe() -> dict[str, object]:
    """Processor, memory, system and versions, and the time of the measurement."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    flags = set(first(r"^flags\s*:(.*)$", cpuinfo).split())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": first(r"^model name\s*:(.*)$", cpuinfo),
        "cpus": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "l3": first(r"^cache size\s*:(.*)$", cpuinfo),
        "memory_gb": round(int(first(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())) / 1e6, 1),
        "load_before": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "headrace": __version__,
        "commit": commit.stdout.strip(),
    }
