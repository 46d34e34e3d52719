"""The map of rooms in docs/architecture.md is true: who imports whom is read from the code's syntax trees."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "headrace"
ARCHITECTURE = ROOT / "docs" / "architecture.md"

LEAVES = {"types", "errors"}
HEAVY_AT_IMPORT = {"numpy", "torch", "transformers", "huggingface_hub", "rich", "matplotlib"}
HEAVY_ALLOWED = {"backends/reference": {"numpy"}}


def documented_table() -> dict[str, set[str]]:
    """The import table of docs/architecture.md: room -> rooms that it may import."""
    table: dict[str, set[str]] = {}
    for line in ARCHITECTURE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 2 or not cells[0].startswith("`"):
            continue
        for room in re.findall(r"`(\w+)`", cells[0]):
            table[room] = set(re.findall(r"`(\w+)`", cells[1])) if cells[1] != "everything" else {"*"}
    return table


def room_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(path: Path) -> list[str]:
    """Every headrace module that the file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("headrace")]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            if node.module == "headrace":
                found += [f"headrace.{alias.name}" for alias in node.names]
            elif node.module and node.module.startswith("headrace."):
                found.append(node.module)
    return found


FILES = sorted(SOURCE.rglob("*.py"))
IDS = [str(path.relative_to(SOURCE)) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_follow_the_documented_table(path: Path) -> None:
    room = room_of(path)
    if room in {"__init__", "__main__"}:
        return
    table = documented_table()
    assert room in table, f"docs/architecture.md has no row for the room {room!r}"
    allowed = table[room] | {room}
    for module in imported_modules(path):
        parts = module.split(".")
        target = parts[1] if len(parts) > 1 else "__init__"
        if target == "__version__":
            continue
        assert "*" in allowed or target in allowed, f"{path.relative_to(ROOT)}: {room} may not import {module}"
        assert target != "cli" or room == "cli", "nothing imports cli"


def test_every_documented_room_exists() -> None:
    for room in documented_table():
        assert (SOURCE / room).is_dir() or (SOURCE / f"{room}.py").is_file(), f"documented room {room!r} is not there"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    """At module level they would cost every start; inside a function only whoever needs them pays."""
    allowed = next((names for prefix, names in HEAVY_ALLOWED.items() if prefix in path.as_posix()), set())
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        for name in names:
            assert name.split(".")[0] not in HEAVY_AT_IMPORT - allowed, f"{path}: import {name} at module level"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_config_reads_the_environment(path: Path) -> None:
    if path == SOURCE / "config" / "loading.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in {"environ", "getenv"}, f"{path}: reads the environment"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_nothing_deserialises_or_evaluates_code(path: Path) -> None:
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not banned & {alias.name.split(".")[0] for alias in node.names}, path
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in banned, path
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, path


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_assert_guards_anything(path: Path) -> None:
    """``python -O`` removes them; a check that matters raises."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: assert in the package"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_settings_are_dataclasses(path: Path) -> None:
    """A dataclass compiles its methods at every import, 0.5 ms each: values are `msgspec.Struct`s (0002)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            assert "knob(" in ast.unparse(node) or "_own(" in ast.unparse(node), (
                f"{node.name} declares no settings: make it a msgspec.Struct"
            )
