"""The chat: piped, and at a terminal of its own (a pty)."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ONE = ["--temperature", "0", "--max-model-len", "512"]


def piped(model: Path, question: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "headrace", "run", str(model), *ONE, *words]
    return subprocess.run(command, input=question, capture_output=True, timeout=60, check=False)


def test_a_piped_question_is_answered(model: Path) -> None:
    result = piped(model, b"What is the capital of France?\n", "--max-tokens", "20")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"Paris" in result.stdout


@pytest.mark.parametrize(
    ("question", "code", "words"),
    [
        (b" \n", 2, "nothing on standard input"),
        (b"\xff\xfe", 2, "not UTF-8"),
        (b"word " * 600, 1, "the context holds 512"),
    ],
)
def test_what_cannot_be_asked_is_one_line(model: Path, question: bytes, code: int, words: str) -> None:
    result = piped(model, question)
    assert result.returncode == code
    assert words in result.stderr.decode()
    assert result.stderr.count(b"\n") == 1


class Terminal:
    """A ``headrace run`` whose input and output are a terminal."""

    def __init__(self, *words: str) -> None:
        self.fd, inside = pty.openpty()
        command = [sys.executable, "-m", "headrace", "run", *words]
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True,
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(inside)
        self.seen = ""

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, pattern: str, seconds: float = 60.0) -> str:
        """What was shown since the last call, up to and with the first match of ``pattern``."""
        limit = time.monotonic() + seconds
        while (match := re.search(pattern, self.seen)) is None:
            if time.monotonic() > limit:
                raise TimeoutError(f"{pattern!r} is not in {self.seen!r}")
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 65536).decode("utf-8", "replace")
        found, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return found


def _own_terminal() -> None:
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs, these tests perhaps, ignore it
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches this process


@pytest.fixture
def terminal(model: Path) -> Iterator[Terminal]:
    made = Terminal(str(model), "--temperature", "0", "--max-model-len", "8192")  # the story outlasts a slow test
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.fd)


def test_a_conversation(terminal: Terminal) -> None:
    terminal.until(">>> ")
    terminal.send("/help\n")
    assert "/clear" in terminal.until(">>> ")
    terminal.send("What is the capital of France?\n")
    assert "Paris" in terminal.until(r"\n>>> ")
    terminal.send("/clear\n")
    terminal.until(">>> ")
    terminal.send("Write a long story about a mill.\n")
    terminal.until(r"a mill\.\s+\w+ \w+ ")  # it has begun to answer
    terminal.send("\x03")
    terminal.until(r"\(stopped\)[\s\S]*>>> ")
    terminal.send("/clear\n")
    terminal.until(">>> ")
    terminal.send("What is the capital of France?\n")
    assert "Paris" in terminal.until(r"\n>>> ")
    terminal.send("/exit\n")
    assert terminal.process.wait(60) == 0


def press_until(terminal: Terminal, key: str, pattern: str) -> None:
    """As a person does: CPython overlooks a signal between readline's prompt and its select."""
    for _ in range(20):
        terminal.send(key)
        with contextlib.suppress(TimeoutError):
            terminal.until(pattern, 2)
            return
    raise AssertionError(f"{pattern!r} does not come: {terminal.seen!r}")


def test_ctrl_c_at_the_prompt_stays_and_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.until(">>> ")
    terminal.send("half a line")
    terminal.until("half a line")
    press_until(terminal, "\x03", r"\n>>> ")
    terminal.send("\x04")
    assert terminal.process.wait(60) == 0
