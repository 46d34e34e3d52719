"""Every setting, declared once; and the only reader of the environment.

A section is a frozen dataclass; each of its fields is a setting, declared with `knob`. Command-line flags
(``cli.flags``), environment names (``HEADRACE_<NAME>``), keys of the configuration file (TOML, the same names),
``--help`` and ``headrace config explain`` are all made from the declarations. The command line wins over the
environment, that over the file, that over the default; every value remembers where it came from. A name nobody
declared, or a value out of its limits, is an error that says which setting and which source.

Each room is given its own section and nothing else.
"""

# ruff: noqa: RUF009  (knob declares a setting; it makes no default that instances share)

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from headrace.errors import ConfigError

ENV_PREFIX = "HEADRACE_"

_KUBERNETES = re.compile(r"HEADRACE_(SERVICE_(HOST|PORT.*)|PORT(_\d+_(TCP|UDP).*)?)")
"""What Kubernetes puts into every pod beside a Service that is called ``headrace``: nobody's setting."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting: what it means and which values it takes. Name, type and default are its dataclass field's.

    ``parse`` turns text into the value and raises ValueError with what is wrong. ``many`` takes several values;
    a None default can be asked for by name ("auto"). ``env`` False keeps a setting out of environment and file.
    """

    help: str
    parse: Callable[[str], object]
    metavar: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    many: bool = False
    secret: bool = False
    positional: bool = False
    env: bool = True


def integer(text: str) -> int:
    """A decimal whole number: no separators, no exponents."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text):
        raise ValueError("is not a whole number")
    return int(text)


def number(text: str) -> float:
    """A finite decimal number."""
    if not re.fullmatch(r"[+-]?\d{1,18}(\.\d{1,18})?", text):
        raise ValueError("is not a number")
    return float(text)


def size(text: str) -> int:
    """Bytes: a number with an optional unit; KiB, MiB, GiB, TiB are powers of 1024, kB, MB, GB, TB of 1000."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kKMGT])(i?)B?|B)?", text)
    if match is None:
        raise ValueError("is not a size; write it like 4GiB, 512MiB or 1000000")
    amount, letter, binary = match.groups()
    power = "_KMGT".index(letter.upper()) if letter else 0
    return int(float(amount) * (1024 if binary else 1000) ** power)


def switch(text: str) -> bool:
    """A yes or no, as environment variables and files write them."""
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in known:
        raise ValueError("is neither true nor false")
    return known[text.lower()]


def text(value: str) -> str:
    """Any text but an empty one, without the space around it."""
    if not value.strip():
        raise ValueError("is empty")
    return value.strip()


def path(value: str) -> Path:
    """A path, with a leading ``~`` expanded."""
    return Path(text(value)).expanduser()


_METAVARS: Mapping[Callable[[str], object], str] = {integer: "N", number: "X", size: "SIZE", path: "PATH"}


def knob(default: object, help: str, parse: Callable[[str], object] = text, **more: Any) -> Any:
    """Declare a setting as a dataclass field; ``more`` are `Knob`'s other fields."""
    metavar = more.pop("metavar", _METAVARS.get(parse, "TEXT"))
    return dataclasses.field(default=default, metadata={"knob": Knob(help, parse, metavar, **more)})


def knobs(section: type[object]) -> Iterator[tuple[str, object, Knob]]:
    """The (name, default, declaration) of every setting of a section, in the order of declaration."""
    for field in dataclasses.fields(cast(Any, section)):
        yield field.name, field.default, field.metadata["knob"]


# -------------------------------------------------------------------------------------------------- the declarations


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What is served, and in which precision."""

    TITLE: ClassVar[str] = "model"

    model: str | None = knob(
        None,
        "A directory (config.json + safetensors), a .gguf file, a catalogue name, or a hub id (organisation/name)."
        " Without one, the built-in default SmolLM2-135M-Instruct is fetched once and served.",
        metavar="MODEL",
        positional=True,
    )
    dtype: str = knob(
        "auto",
        "Precision of weights, matrix products and KV cache. auto is bfloat16.",
        choices=("auto", "bfloat16", "float32"),
    )
    max_model_len: int | None = knob(
        None,
        "Longest context, prompt and answer together. auto is what the checkpoint was trained for, or what fits in the"
        " KV cache. Longer prompts are refused, never cut.",
        integer,
        unit="tokens",
        minimum=1,
        maximum=16_777_216,
    )
    seed: int | None = knob(
        None,
        "Starts the generator that gives a seed to requests without one: the same requests in the same order then get"
        " the same answers. auto is different at every start.",
        integer,
        minimum=0,
        maximum=2**32 - 1,
    )


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where models are kept."""

    TITLE: ClassVar[str] = "cache"

    cache_dir: Path | None = knob(
        None, "Where fetched models are kept. auto is $XDG_CACHE_HOME/headrace, else ~/.cache/headrace.", path
    )


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How requests share the model. More at once: higher throughput; fewer: lower latency for each."""

    TITLE: ClassVar[str] = "batching"

    max_num_seqs: int = knob(
        256, "Most sequences computed in one step; the others wait their turn.", integer, minimum=1, maximum=4096
    )
    max_num_batched_tokens: int = knob(
        2048,
        "Most tokens computed in one step, prompts and answers together. It sizes the activation memory.",
        integer,
        unit="tokens",
        minimum=16,
        maximum=131_072,
    )
    enable_prefix_caching: bool = knob(
        True, "Compute the shared beginning of prompts once and keep it while there is room.", switch
    )
    kv_cache_memory: int | None = knob(
        None,
        "Memory for the KV cache: 4GiB, 512MiB, or a number of bytes. auto lets it grow to half of what the weights leave.",
        size,
        unit="bytes",
        minimum=1 << 16,
    )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Who may ask, by which name, and for how long."""

    TITLE: ClassVar[str] = "server"

    host: str = knob("127.0.0.1", "Address to listen on; 0.0.0.0 serves the whole network.")
    port: int = knob(8000, "TCP port; 0 takes any free one.", integer, minimum=0, maximum=65535)
    api_key: tuple[str, ...] = knob(
        (),
        "Keys that requests must present one of (Authorization: Bearer KEY). Prefer HEADRACE_API_KEY, comma-separated:"
        " other users of the machine can read command lines.",
        many=True,
        secret=True,
        metavar="KEY",
    )
    served_model_name: tuple[str, ...] = knob(
        (), "Names that requests may call the model by; the first is the one in answers.", many=True, metavar="NAME"
    )
    max_queue: int = knob(
        1024,
        "Most requests that wait for their first step; more are answered 429 with Retry-After.",
        integer,
        unit="requests",
        minimum=1,
        maximum=1_000_000,
    )
    request_timeout: float = knob(
        600.0,
        "Longest that one request may take, waiting included; it then ends with an error. 0 sets no limit.",
        number,
        unit="seconds",
        minimum=0,
        maximum=86_400,
    )
    grace_period: float = knob(
        25.0,
        "How long running requests may finish after SIGTERM. Keep it below the orchestrator's own limit"
        " (Kubernetes: 30).",
        number,
        unit="seconds",
        minimum=0,
        maximum=86_400,
    )
    log_level: str = knob("info", "How much is logged to stderr.", choices=("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """What of this machine is used."""

    TITLE: ClassVar[str] = "machine"

    threads: int | None = knob(
        None, "Compute threads. auto is one for each CPU that the process may use.", integer, minimum=1, maximum=1024
    )
    isa: str | None = knob(
        None,
        "Instruction set of the kernels. auto is the best that the CPU has; the others are for tests and comparisons.",
        choices=("amx", "avx512bf16", "avx512", "avx2", "portable"),
    )


SECTIONS: tuple[type[object], ...] = (ModelSettings, BatchSettings, ServerSettings, MachineSettings, CacheSettings)
"""Everything that environment and file may set."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One resolved value and its source: "default", "command line", "environment …" or "file …"."""

    name: str
    value: object
    source: str
    knob: Knob

    def shown(self) -> str:
        """The value for people; a secret is masked whatever its length."""
        if self.value is None:
            return "auto"
        if self.knob.secret:
            return "******" if self.value else "none"
        if isinstance(self.value, tuple):
            return ", ".join(map(str, self.value)) or "none"
        if isinstance(self.value, float):
            return f"{self.value:g}"
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one command."""

    settings: Mapping[str, Setting]

    def section(self, kind: type[S]) -> S:
        """The slice that one room is given."""
        return kind(**{name: self.settings[name].value for name, _, _ in knobs(kind)})


def environment() -> Mapping[str, str]:
    """The process's environment, for what other programs' variables say (pip's package index)."""
    return os.environ


def load(
    given: Mapping[str, object],
    sections: Sequence[type[object]] = SECTIONS,
    env: Mapping[str, str] | None = None,
) -> Config:
    """Every setting of ``sections`` from the command line, environment, file and defaults, in this order.

    ``given`` is what `headrace.cli.flags` found on the command line, values still text (lists of it, where a setting
    takes several); its key "config", or HEADRACE_CONFIG, names the file. ``env`` is the process's own if None.

    Raises:
        ConfigError: a name is unknown or a value bad; the message names the setting and its source.
    """
    env = os.environ if env is None else env
    named = {name: value for name, value in env.items() if name.startswith(ENV_PREFIX)}
    file = str(given.get("config") or named.pop(ENV_PREFIX + "CONFIG", ""))
    in_file = _read_file(file) if file else {}
    _refuse_unknown(named, in_file, file)
    settings: dict[str, Setting] = {}
    for section in sections:
        for name, default, knob in knobs(section):
            variable = ENV_PREFIX + name.upper()
            raw: object
            if name in given:
                source, raw = "command line", given[name]
            elif knob.env and variable in named and not _is_kubernetes(variable, named[variable]):
                found = named[variable]
                source, raw = f"environment {variable}", found.split(",") if knob.many else found
            elif knob.env and name in in_file:
                source, raw = f"file {file}", in_file[name]
            else:
                settings[name] = _default(name, default, knob, env)
                continue
            settings[name] = Setting(name, _value(name, raw, default, knob, source), source, knob)
    return Config(settings)


def _default(name: str, default: object, knob: Knob, env: Mapping[str, str]) -> Setting:
    if name != "cache_dir":
        return Setting(name, default, "default", knob)
    if env.get("XDG_CACHE_HOME"):
        return Setting(name, Path(env["XDG_CACHE_HOME"]) / "headrace", "environment XDG_CACHE_HOME", knob)
    return Setting(name, Path("~/.cache/headrace").expanduser(), "default", knob)


def _value(name: str, raw: object, default: object, knob: Knob, source: str) -> object:
    """The checked value of ``raw``: text, a TOML scalar, or a list of them."""
    if knob.many:
        items = raw if isinstance(raw, list) else [raw]
        return tuple(_value(name, item, default, dataclasses.replace(knob, many=False), source) for item in items)
    if not isinstance(raw, (str, int, float)):
        raise ConfigError(f"{name} ({source}): takes one value, not {type(raw).__name__}")
    words = str(raw).lower() if isinstance(raw, bool) else str(raw)
    shown = "the value" if knob.secret else repr(words)
    if default is None and words == "auto":
        return None
    if knob.choices and words not in knob.choices:
        extra = ("auto",) if default is None else ()
        raise ConfigError(f"{name} ({source}): {shown} is not one of {', '.join(extra + knob.choices)}")
    try:
        value = knob.parse(words)
    except ValueError as error:
        raise ConfigError(f"{name} ({source}): {shown} {error}") from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        unit = f" {knob.unit}" if knob.unit else ""
        if knob.minimum is not None and value < knob.minimum:
            raise ConfigError(f"{name} ({source}): {shown} is below the least allowed, {knob.minimum}{unit}")
        if knob.maximum is not None and value > knob.maximum:
            raise ConfigError(f"{name} ({source}): {shown} is above the most allowed, {knob.maximum}{unit}")
    return value


def _is_kubernetes(variable: str, value: str) -> bool:
    return bool(_KUBERNETES.fullmatch(variable)) and (variable != "HEADRACE_PORT" or "://" in value)


def _read_file(file: str) -> dict[str, object]:
    import tomllib

    try:
        data = tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"config: cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"config: {file} is not TOML in UTF-8: {error}") from None
    return {key.replace("-", "_"): value for key, value in data.items()}


def _refuse_unknown(named: Mapping[str, str], in_file: Mapping[str, object], file: str) -> None:
    known = [name for section in SECTIONS for name, _, knob in knobs(section) if knob.env]
    found = [(name, f"file {file}", name) for name in in_file]
    for variable, value in named.items():
        if not _is_kubernetes(variable, value):
            found.append((variable.removeprefix(ENV_PREFIX).lower(), "environment", variable))
    for name, source, written in found:
        if name not in known:
            import difflib

            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
            raise ConfigError(f"{written} ({source}): no such setting{hint}")
