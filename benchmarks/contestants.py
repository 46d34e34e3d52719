"""Who is measured, as data: how each server is started on the same weights, and which peers are installed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Contestant:
    """One server on one set of weights.

    ``command`` gives its command line for a port and a number of users; ``per_level`` servers are restarted for each
    number of users, because they divide their memory by it at start (llama.cpp's slots). ``in_process`` ones are no
    servers: their command reads levels and writes results. ``most_users``: beyond it
    a contestant is so far behind the others that its minutes are better spent on more rounds.
    """

    name: str
    weights: str
    model: Path | None
    command: Callable[[int, int], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    per_level: bool = False
    in_process: bool = False
    most_users: int = 128

    @property
    def ours(self) -> bool:
        """It is this software, whatever its settings."""
        return self.name.startswith("headrace")


def named(name: str, setting: str) -> str:
    """The name of a contestant that takes part in another setting than its usual one."""
    return f"{name} ({setting})" if setting else name


def headrace(model: Path | None, weights: str, *extra: str, setting: str = "") -> Contestant:
    """Ours, from this Python environment; with its default settings if ``setting`` names no other."""

    def command(port: int, _users: int) -> list[str]:
        chosen = [] if model is None else [str(model)]
        return [sys.executable, "-m", "headrace", "serve", *chosen, "--port", str(port), *extra]

    return Contestant(named("headrace", setting), weights, model, command)


def preloaded(home: Path) -> dict[str, str]:
    """What makes torch fastest here: Intel's OpenMP and tcmalloc, where they are installed."""
    paths = [home / "vllm" / "lib" / "libiomp5.so", Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")]
    return {"LD_PRELOAD": ":".join(str(path) for path in paths if path.exists())}


def vllm(home: Path, model: Path, *extra: str, setting: str = "") -> Contestant:
    """vLLM for CPU in its best setting here: both cores, Intel's OpenMP and tcmalloc."""
    folder = home / "vllm"

    def command(port: int, _users: int) -> list[str]:
        return [
            str(folder / "bin" / "vllm"),
            *("serve", str(model), "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "bfloat16", "--max-model-len", "2048", "--served-model-name", "m", *extra),
        ]

    environment = {
        **preloaded(home),
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
    }
    return Contestant(named("vLLM-CPU", setting), "bf16", model, command, environment)


def llama(home: Path, model: Path, weights: str, build: str = "llama-build", most_users: int = 128) -> Contestant:
    """llama.cpp's server, with as many slots as users (4 at least) and flash attention off, its faster setting here."""
    folder = home / build / "bin"

    def command(port: int, users: int) -> list[str]:
        slots = max(4, users)
        return [
            str(folder / "llama-server"),
            *("-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-t", "2", "-tb", "2"),
            *("-c", str(512 * slots), "--parallel", str(slots), "-cb", "-fa", "off", "--alias", "m"),
        ]

    libraries = {"LD_LIBRARY_PATH": str(folder)}
    return Contestant("llama.cpp", weights, model, command, libraries, per_level=True, most_users=most_users)


def openvino(home: Path, model: Path, weights: str, *extra: str) -> Contestant:
    """OpenVINO GenAI's continuous batching, driven in process: it pays for no HTTP."""
    script = Path(__file__).with_name("openvino_levels.py")

    def command(_port: int, _users: int) -> list[str]:
        return [str(home / "ov" / "bin" / "python"), str(script), str(model), *extra]

    return Contestant("OpenVINO", weights, model, command, in_process=True)


def naive(home: Path, model: Path) -> Contestant:
    """transformers without a server, from vLLM's environment."""
    script = Path(__file__).with_name("naive_levels.py")

    def command(_port: int, _users: int) -> list[str]:
        return [str(home / "vllm" / "bin" / "python"), str(script), str(model)]

    return Contestant("transformers", "bf16", model, command, preloaded(home), in_process=True, most_users=1)


def contestants(model: str, peers: Path | None, isa: str | None = None, *, shared: bool = False) -> list[Contestant]:
    """Ours and every installed peer for ``model``: "smollm2" or "1b" (a Llama-3.2-1B shape of random weights).

    With ``isa`` ("avx512", "avx2") ours with those kernels, and llama.cpp built for that instruction set. ``shared``:
    prompts share a beginning, so ours and vLLM take part without their prefix caches, too.
    """
    if peers is None:
        return [headrace(None, "Q4_1")] if model == "smollm2" else []
    stem, openvino_stem = {"smollm2": ("smollm2-135m", "ov-smol"), "1b": ("llama-1b-rand", "ov-1b")}[model]
    models = peers / "models"
    build = "llama-build" if isa is None else f"llama-{isa}"
    # The context is bounded as the peers' is, so that all have about the same KV memory.
    bounded = ("--max-model-len", "2048", *(() if isa is None else ("--isa", isa)))
    # Rounds about as much as llama.cpp, which multiplies 8-bit activations (docs/decisions/0012).
    integers = ("--activations", "int16")
    # OpenVINO keeps keys and values in 8 bits unless told otherwise (its KV_CACHE_PRECISION).
    small_kv = ("--kv-cache-dtype", "int8")
    found = [
        headrace(models / f"{stem}-bf16", "bf16", *bounded),
        headrace(models / f"{stem}-Q8_0.gguf", "int8", *bounded),
        headrace(models / f"{stem}-Q4_0.gguf", "int4", *bounded),
        headrace(models / f"{stem}-Q8_0.gguf", "int8", *bounded, *integers, setting="int16 activations"),
        headrace(models / f"{stem}-Q4_0.gguf", "int4", *bounded, *integers, setting="int16 activations"),
        headrace(models / f"{stem}-bf16", "bf16", *bounded, *small_kv, setting="8-bit KV"),
        headrace(
            models / f"{stem}-Q8_0.gguf", "int8", *bounded, *integers, *small_kv, setting="int16 activations, 8-bit KV"
        ),
        llama(peers, models / f"{stem}-bf16.gguf", "bf16", build, most_users=128 if isa else 4),
        llama(peers, models / f"{stem}-Q8_0.gguf", "int8", build, most_users=128 if isa else 16),
        llama(peers, models / f"{stem}-Q4_0.gguf", "int4", build),
    ]
    caching = ("--prefix-caching",) if shared else ()
    if isa is None:
        found += [
            naive(peers, models / f"{stem}-bf16"),
            vllm(peers, models / f"{stem}-bf16"),
            openvino(peers, models / f"{openvino_stem}-fp16", "bf16", *caching),
            openvino(peers, models / f"{openvino_stem}-int8", "int8", *caching),
        ]
    if shared:
        off, bf16, setting = "--no-enable-prefix-caching", models / f"{stem}-bf16", "no prefix cache"
        found += [
            headrace(bf16, "bf16", *bounded, off, setting=setting),
            vllm(peers, bf16, off, setting=setting),
        ]
    return [one for one in found if one.model is None or one.model.exists()]


def versions(peers: Path) -> dict[str, str]:
    """The version of each installed peer."""
    found = {}
    for name in ("vllm", "openvino_genai"):
        for folder in peers.glob(f"*/lib/python3*/site-packages/{name}-*.dist-info"):
            found[name] = folder.name.removeprefix(f"{name}-").removesuffix(".dist-info")
    server = peers / "llama-build" / "bin" / "llama-server"
    if server.exists():
        said = subprocess.run([str(server), "--version"], capture_output=True, text=True, check=True)
        found["llama.cpp"] = re.findall(r"version: (.*)", said.stdout + said.stderr)[0]
    return found
