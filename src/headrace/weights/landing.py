"""Where downloads land: progress reports, locks between processes, and what a disk can say no to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from headrace.errors import DownloadError

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a read-only folder into a `DownloadError` that says what to do."""
    try:
        yield
    except OSError as error:
        place = path.parent
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"{place}: the disk is full; free some space or set XDG_CACHE_HOME elsewhere"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DownloadError(f"{place}: cannot be written; set XDG_CACHE_HOME to a folder that can") from error
        raise DownloadError(f"{path}: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file exclusively; a second process waits. The lock goes with its holder, however that dies."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
