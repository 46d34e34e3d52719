"""Throw-away environments for clients whose dependencies fight with each other and with the tests' own.

An environment is kept between runs, under a name that its requirements decide; it becomes visible only when complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("TEST_CLIENTS", Path(__file__).resolve().parents[2] / ".cache" / "clients"))
PATIENCE = 600
"""Seconds that an installation may take."""


@dataclass(frozen=True)
class Client:
    """One client: what to install for it, and the script that uses it, ``flows/NAME.py`` or ``.mjs``."""

    name: str
    requirements: tuple[str, ...]
    npm: bool = False

    @property
    def script(self) -> Path:
        return Path(__file__).with_name("flows") / f"{self.name}.{'mjs' if self.npm else 'py'}"


class InstallFailedError(Exception):
    """The registry did not give what a client needs."""


def command(client: Client) -> list[str]:
    """How to run the client's flow; its environment is installed if it is not there."""
    folder = _installed(client)
    if client.npm:  # imports are looked up from where the script lies
        script = folder / client.script.name
        shutil.copyfile(client.script, script)
        return ["node", str(script)]
    return [str(folder / "bin" / "python"), str(client.script)]


def _installed(client: Client) -> Path:
    digest = hashlib.sha256("\n".join((sys.version, *client.requirements)).encode()).hexdigest()[:12]
    folder = CACHE / f"{'npm' if client.npm else 'pip'}-{digest}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    if not client.npm:  # a virtual environment cannot be moved: a marker says that it is complete
        return _virtual_environment(folder, client.requirements)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        (Path(work) / "package.json").write_text('{"private": true, "type": "module"}')
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund", *client.requirements], work)
        Path(work).rename(folder)
        Path(work).mkdir()  # for the context to remove
    return folder


def _virtual_environment(folder: Path, requirements: Sequence[str]) -> Path:
    building = folder.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(building)], None)
    # Scripts in bin/ name the folder that they were made in; python itself and the libraries do not care.
    _run([str(building / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements], None)
    building.rename(folder)
    return folder


def _run(arguments: list[str], folder: str | None) -> None:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise InstallFailedError(f"{' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
