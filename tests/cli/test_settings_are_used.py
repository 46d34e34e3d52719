"""No setting is accepted and ignored: whatever is declared is read by the command that offers it."""

import ast
from pathlib import Path

import pytest

from headrace.cli import bench, keys, quantize, run, store, watermark
from headrace.config import SECTIONS, knobs

CLI = Path(run.__file__).parent
ROOT_FILES = (
    "serve.py",
    "assembly.py",
    "backend.py",
    "run.py",
    "store.py",
    "speculation.py",
    "hosting.py",
    "shelf.py",
    "watermark.py",
)
DECLARED: list[tuple[type[object], tuple[str, ...]]] = [
    *((section, ROOT_FILES) for section in SECTIONS),
    *((section, ("bench.py",)) for section in bench.SECTIONS),
    (run.ChatSettings, ("run.py",)),
    (store.Names, ("pull.py", "rm.py")),
    (keys.KeySettings, ("keys.py",)),
    (quantize.Quantization, ("quantize.py",)),
    (watermark.DetectSettings, ("watermark.py",)),
]


@pytest.mark.parametrize(("section", "files"), DECLARED, ids=[section.__name__ for section, _ in DECLARED])
def test_every_setting_is_read(section: type[object], files: tuple[str, ...]) -> None:
    read = {
        node.attr
        for name in files
        for node in ast.walk(ast.parse((CLI / name).read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert {name for name, _, _ in knobs(section)} <= read
