import subprocess
import sys
from pathlib import Path

from headrace.bench.process import tree_rss


def test_the_memory_of_a_whole_tree_is_seen() -> None:
    hold = "import sys; data = bytearray(64 << 20); print('ready', flush=True); sys.stdin.read()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdout is not None and process.stdin is not None:
            assert process.stdout.readline() == b"ready\n"
            assert tree_rss(process.pid) > 64 << 20
            process.stdin.close()
    assert tree_rss(process.pid) == 0


def test_nobody_has_no_memory(tmp_path: Path) -> None:
    assert tree_rss(1, tmp_path) == 0
