"""The dispatch, the help and the exit codes of every command."""

import subprocess
import sys

import pytest

from headrace import __version__
from headrace.cli.main import COMMANDS
from headrace.config import SECTIONS, knobs
from tests.cli.commands import command


def test_help_lists_every_command() -> None:
    for words in ([], ["--help"], ["help"]):
        result = command(*words)
        assert result.code == 0
        assert all(f"  {name} " in result.out for name in COMMANDS)


def test_version() -> None:
    assert command("--version").out == f"headrace {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = command(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"usage: headrace {name}" in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_is_one_line_and_exit_code_2(name: str) -> None:
    words = [name, "explain"] if name == "config" else [name]
    result = command(*words, "--no-such-flag")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert "--no-such-flag" in result.err


def test_an_unknown_command_names_the_known_ones() -> None:
    result = command("sevre")
    assert result.code == 2
    assert "'sevre'" in result.err
    assert "serve" in result.err


def test_serve_help_has_a_sentence_for_every_setting() -> None:
    text = " ".join(command("serve", "--help").out.split())
    for section in SECTIONS:
        for name, _, knob in knobs(section):
            assert knob.positional or "--" + name.replace("_", "-") in text
            assert " ".join(knob.help.split())[:40] in text


def test_abbreviated_flags_are_refused() -> None:
    """They would change their meaning with the next flag that begins alike."""
    assert command("serve", "--por", "1").code == 2


def test_help_imports_little_and_nothing_heavy() -> None:
    code = "import sys; begin = set(sys.modules); from headrace.cli.main import main; main(['--help'])"
    code += "; print(*set(sys.modules) - begin)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = set(out.splitlines()[-1].split())
    assert len(loaded) < 50, "33 with CPython 3.11; seconds would be the machine's"
    assert not loaded & {
        "argparse",
        "asyncio",
        "rich",
        "uvicorn",
        "starlette",
        "tokenizers",
        "huggingface_hub",
        "numpy",
    }


def test_a_start_imports_nothing_that_a_completion_does_not_need() -> None:
    rooms = "headrace.cli.serve, headrace.cli.words, headrace.api.server, headrace.engine.engine"
    code = f"import sys, {rooms}, headrace.backends.cpu.backend; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    later = {
        *("click", "huggingface_hub", "jinja2", "llguidance", "multiprocessing", "numpy", "prometheus_client", "rich"),
        *("headrace.bench", "headrace.cli.chats", "headrace.text.formats.families", "headrace.text.sandbox"),
        *("headrace.wire.openapi", "uvicorn.main"),
    }
    assert not later & set(out.split())
