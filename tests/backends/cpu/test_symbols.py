"""Kernels compiled for a newer instruction set must not leak inline code into the rest of the library.

The linker keeps one copy of a weak symbol. If that copy came from a file compiled with AVX512, every other file would
run it too, and crash on older processors.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[3] / "native"
FLAGS = {"kernels_avx2": ["-mavx2", "-mfma"]}
AVX512 = ["-Wno-uninitialized", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
FLAGS["kernels_avx512"] = AVX512
FLAGS["kernels_avx512bf16"] = [*AVX512, "-mavx512bf16"]
FLAGS["kernels_amx"] = [*AVX512, "-mavx512bf16", "-mavx512vbmi", "-mamx-tile", "-mamx-bf16"]


@pytest.mark.skipif(not shutil.which("g++") or not shutil.which("nm"), reason="needs g++ and nm")
@pytest.mark.parametrize("name", FLAGS)
def test_no_weak_symbols(name: str, tmp_path: Path) -> None:
    """-O0 inlines nothing, so whatever could leak at some level of optimisation does here."""
    out = tmp_path / f"{name}.o"
    source = str(NATIVE / f"{name}.cpp")
    command = [
        "g++",
        "-std=c++17",
        "-O0",
        "-fvisibility=hidden",
        "-fno-exceptions",
        *FLAGS[name],
        "-c",
        source,
        "-o",
        str(out),
    ]
    subprocess.run(command, check=True, capture_output=True)
    listed = subprocess.run(["nm", "-C", str(out)], check=True, capture_output=True, text=True).stdout
    symbols = listed.splitlines()
    assert any(" T hr::kernels_" in symbol for symbol in symbols)
    assert [symbol for symbol in symbols if {" W ", " V ", " u "} & {symbol[16:19]}] == []
