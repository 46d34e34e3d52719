"""Running a command in this process, and reading what it printed."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from headrace.cli.main import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def command(*words: str) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return Result(code, out.getvalue(), err.getvalue())
