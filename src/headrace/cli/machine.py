"""How much memory this process may take: of the machine, or of the container that it is in."""

from __future__ import annotations

import os
import re
from pathlib import Path

_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),  # cgroup v2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),  # v1
)


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be taken without swapping or being killed. Page cache counts as free: it gives way."""
    free = _machine(meminfo)
    for limit, used, stat in _CGROUP_FILES:
        found = _number(cgroup / limit)
        if found is not None:
            free = min(free, found - (_number(cgroup / used) or 0) + _cache(cgroup / stat))
    return max(free, 0)


def _machine(meminfo: Path) -> int:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match is not None:
        return int(match[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # macOS tells the whole only


def _cache(stat: Path) -> int:
    """File pages that nobody uses: counted as used by the container, and given back when needed."""
    try:
        return sum(map(int, re.findall(r"^(?:total_)?inactive_file (\d+)$", stat.read_text(), re.MULTILINE)[:1]))
    except OSError:
        return 0


def _number(file: Path) -> int | None:
    """None where there is no file or no limit ("max")."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
