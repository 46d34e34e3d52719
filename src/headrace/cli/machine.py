"""How much memory and how many processors this process may take: of the machine, or of the container that it is in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_CGROUP_FILES = {
    "": ("memory.max", "memory.current"),  # cgroup v2
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),  # v1
}
"""Limit and use, by the controller's name in /proc/self/cgroup, which is its folder's name too."""


def available_memory(
    meminfo: Path = Path("/proc/meminfo"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> int:
    """Bytes that can still be taken without swapping or being killed. Page cache counts as free: it gives way."""
    free = _machine(meminfo)
    for controller, (limit, used) in _CGROUP_FILES.items():
        for folder in _groups(controller, cgroup / controller, own):
            found = _number(folder / limit)
            if found is not None:
                free = min(free, found - (_number(folder / used) or 0) + _cache(folder / "memory.stat"))
    return max(free, 0)


def processors(
    allowed: int,
    cgroup: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> int:
    """As many of those ``allowed`` as its groups have time for: more threads would use it up early, and then stand
    still, all of them."""
    count = allowed
    for folder in _groups("", cgroup, own):  # cgroup v2: "QUOTA PERIOD", in microseconds, or "max PERIOD"
        count = min(count, _shares(*_words(folder / "cpu.max")))
    for folder in _groups("cpu", cgroup / "cpu", own):  # v1; no limit is -1
        count = min(count, _shares(*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")))
    return max(count, 1)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _shares(quota: str = "max", period: str = "", *_: str) -> int:
    """Processors' worth of time, rounded up."""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return 1 << 16
    return -(-int(quota) // int(period))


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """The group that this process is in and those around it: each has a limit of its own. What a container cannot
    see of them is not there."""
    yield root
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controller in controllers.split(",") and ".." not in path:
            parts = path.strip("/").split("/")
            yield from (root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1))


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
