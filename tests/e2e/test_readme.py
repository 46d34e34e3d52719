"""README.md is executed, not believed."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.server import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DEFAULT_URL = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_curl_example_answers(idle_server: ServerProcess) -> None:
    (command,) = (block for block in blocks("sh") if block.startswith("curl"))
    shell = subprocess.run(
        ["bash", "-c", command.replace(DEFAULT_URL, idle_server.url)], capture_output=True, check=True, timeout=60
    )
    assert "Paris" in json.loads(shell.stdout)["choices"][0]["message"]["content"]


def test_the_python_example_answers(idle_server: ServerProcess) -> None:
    (program,) = blocks("python")
    python = subprocess.run(
        [sys.executable, "-c", program.replace(DEFAULT_URL, idle_server.url)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert python.stdout.strip(), "drawn without a seed: any word will do"


def test_the_two_command_lines_are_there() -> None:
    start, test = blocks("sh")[0], blocks("sh")[2]
    assert start.strip().endswith("headrace serve")
    assert (ROOT / test.strip()).stat().st_mode & 0o100
    assert test.strip() in (ROOT / ".ci" / "run").read_text()


def test_every_command_in_the_table_exists() -> None:
    for command in re.findall(r"^\| `headrace (\w+)", README, re.MULTILINE):
        subprocess.run(
            [sys.executable, "-m", "headrace", command, "--help"], check=True, capture_output=True, timeout=60
        )
