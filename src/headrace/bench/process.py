"""Watching the memory of the measured server, from outside (Linux: /proc)."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

_PAGE = resource.getpagesize()


def tree_rss(pid: int, proc: Path = Path("/proc")) -> int:
    """Resident bytes of a process and all its descendants; pages that they share count once for each. 0 if gone."""
    total, todo = 0, [pid]
    while todo:
        folder = proc / str(todo.pop())
        try:
            total += int((folder / "statm").read_text().split()[1]) * _PAGE
            for children in folder.glob("task/*/children"):
                todo += map(int, children.read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
    return total


async def peak_rss(pid: int, peak: list[int], every: float = 0.5) -> None:
    """Keep ``peak[0]`` at the most that `tree_rss` showed, until cancelled."""
    while True:
        peak[0] = max(peak[0], tree_rss(pid))
        await asyncio.sleep(every)
