"""Values from the command line, the environment, the file and the defaults, in this order, checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from headrace.config.knobs import Knob, knobs
from headrace.config.settings import SECTIONS
from headrace.errors import ConfigError

ENV_PREFIX = "HEADRACE_"

_KUBERNETES = re.compile(r"HEADRACE_(SERVICE_(HOST|PORT.*)|PORT(_\d+_(TCP|UDP).*)?)")
"""What Kubernetes puts into every pod beside a Service that is called ``headrace``: nobody's setting."""

S = TypeVar("S")


class Setting(Struct, frozen=True):
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


class Config(Struct, frozen=True):
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
        return tuple(_value(name, item, default, replace(knob, many=False), source) for item in items)
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
