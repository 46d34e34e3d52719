"""Throw-away environments for clients whose dependencies fight with each other and with the tests' own.

An environment is kept between runs, under a name that its requirements decide. Each run builds one in a folder of its
own and gives it that name when it is complete, so runs that share the cache do not see each other's half.
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
    if client.npm:  # imports are looked up from where the script lies, and above: each run has its own copy there
        script = Path(tempfile.mkdtemp(dir=folder)) / client.script.name
        shutil.copyfile(client.script, script)
        return ["node", str(script)]
    return [str(folder / "bin" / "python"), str(client.script)]


def _installed(client: Client) -> Path:
    digest = hashlib.sha256("\n".join((sys.version, *client.requirements)).encode()).hexdigest()[:12]
    folder = CACHE / f"{'npm' if client.npm else 'pip'}-{digest}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        building = Path(work) / "environment"
        (_npm_install if client.npm else _pip_install)(building, client.requirements)
        try:
            building.rename(folder)
        except OSError:  # another run was faster, and its environment is as good
            if not folder.exists():
                raise
    return folder


def _npm_install(folder: Path, requirements: Sequence[str]) -> None:
    folder.mkdir()
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    _run(["npm", "install", "--silent", "--no-audit", "--no-fund", *requirements], folder)


def _pip_install(folder: Path, requirements: Sequence[str]) -> None:
    """Scripts in bin/ name the folder that they were made in; python itself and the libraries can be moved."""
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], None)
    _run([*pip, "install", "--quiet", "--no-compile", *requirements], None)  # a flow imports little of it, once


def _run(arguments: list[str], folder: Path | None) -> None:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise InstallFailedError(f"{' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
