"""Ceilings that keep every file readable in one sitting, and no import cycles between modules."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "headrace"
FILE_LINES, CLASS_LINES, FUNCTION_LINES = 400, 300, 60
FORBIDDEN_NAMES = re.compile(r"^(utils?|helpers?|commons?|managers?|misc)$")
GENERATED: set[str] = set()
"""Files that are tables and exempt from the length of a file, by name."""

PYTHON = sorted([*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
NATIVE = sorted(path for kind in ("*.cpp", "*.h", "*.inl") for path in (ROOT / "native").rglob(kind))


@pytest.mark.parametrize("path", PYTHON + NATIVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES or path.name in GENERATED, f"{path.name} has {lines} lines, at most {FILE_LINES}"


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_classes_and_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            limit = CLASS_LINES
            assert not node.name.endswith("Mixin"), f"{path.name}: {node.name}: compose, don't mix in"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = FUNCTION_LINES
        else:
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        assert length <= limit, f"{path.name}:{node.lineno}: {node.name} has {length} lines, at most {limit}"


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_named_for_what_they_do(path: Path) -> None:
    for part in path.relative_to(ROOT).with_suffix("").parts:
        assert not FORBIDDEN_NAMES.match(part), f"{path}: a module named {part} becomes an attic"


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports at module level (an import in a function cannot close a cycle)."""
    modules = {module_name(path): path for path in SOURCE.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        edges: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                edges.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                edges.update(
                    full if (full := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names
                )
        graph[name] = {edge for edge in edges if edge in modules and edge != name}
    return graph


def test_no_import_cycles() -> None:
    graph = import_graph()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import cycle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
