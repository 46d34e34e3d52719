from pathlib import Path

import pytest

from headrace.config import SECTIONS, knobs
from tests.cli.commands import command


def explained(*words: str) -> dict[str, tuple[str, str]]:
    result = command("config", "explain", *words)
    assert (result.code, result.err) == (0, "")
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert all(len(row) == 4 and row[3] for row in rows)
    return {row[0]: (row[1], row[2]) for row in rows}


def test_every_setting_is_explained_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('max_queue = 5\nlog-level = "debug"\n')
    monkeypatch.setenv("HEADRACE_LOG_LEVEL", "error")
    rows = explained("--config", str(file), "--port", "9", "--no-enable-prefix-caching", "some/model")
    assert list(rows) == [name for section in SECTIONS for name, _, _ in knobs(section)]
    assert rows["max_queue"] == ("5 requests", f"file {file}")
    assert rows["log_level"] == ("error", "environment HEADRACE_LOG_LEVEL")
    assert rows["port"] == ("9", "command line")
    assert rows["enable_prefix_caching"] == ("false", "command line")
    assert rows["model"] == ("some/model", "command line")
    assert rows["host"] == ("127.0.0.1", "default")


def test_secrets_are_masked() -> None:
    out = command("config", "explain", "--api-key", "hunter2", "hunter3").out
    assert "hunter" not in out
    assert "api_key\t******\tcommand line" in out


def test_the_error_is_the_one_that_serve_would_give() -> None:
    result = command("config", "explain", "--port", "http")
    assert (result.code, result.err) == (2, "headrace: port (command line): 'http' is not a whole number\n")


def test_an_unknown_action_is_refused() -> None:
    assert command("config", "show").code == 2
    assert "explain" in command("config", "--help").out
