"""uvicorn without its command line: what it leaves out is there for whoever asks."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import headrace.api.server
missing = [name for name in ("click", "uvicorn.main", "multiprocessing", "jinja2") if name in sys.modules]
assert not missing, missing
import uvicorn
assert callable(uvicorn.run) and uvicorn.Server is headrace.api.kept.Server and uvicorn.__version__
"""


def test_serving_imports_no_command_line_and_others_still_find_it() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
