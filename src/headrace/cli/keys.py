"""``headrace keys``: make, list and revoke the keys of a file. The secret is shown once and kept nowhere."""

# ruff: noqa: RUF009  (knob declares a setting; it makes no default that instances share)

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from headrace.access import Key, Limits, Scope, digest_of, format_key, new_secret, parse_keys
from headrace.access.keys import MAX_LIMIT, NAME
from headrace.cli import flags
from headrace.config import integer, knob
from headrace.config import path as file_path
from headrace.errors import ConfigError

ABOUT = """\
Look after the file that `headrace serve --api-key-file` reads. `create NAME` adds a key and prints its secret, which is
kept nowhere: the file has a digest. `list` shows the keys, `revoke NAME` removes one. A running server follows within
seconds."""

EXAMPLES = """\
  headrace keys create alice --file keys.txt
  headrace keys create batch --file keys.txt --tokens-per-minute 100000 --concurrent 4
  headrace keys create ops --file keys.txt --scopes metrics admin
  headrace keys revoke alice --file keys.txt
"""


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What is to be done, and the new key's limits."""

    TITLE: ClassVar[str] = "keys"

    words: tuple[str, ...] = knob(
        (), "create NAME, list, or revoke NAME.", many=True, positional=True, env=False, metavar="ACTION"
    )
    file: Path | None = knob(None, "The file of keys.", file_path, env=False, metavar="FILE")
    scopes: tuple[str, ...] = knob(
        ("inference",), "What it is good for.", choices=tuple(Scope), many=True, env=False, metavar="SCOPE"
    )
    tenant: str | None = knob(None, "Keys of one tenant share their prefix cache. auto is the key's name.", env=False)
    requests_per_minute: int | None = knob(
        None, "Requests that it may make. auto is no limit.", integer, env=False, minimum=1, maximum=MAX_LIMIT
    )
    tokens_per_minute: int | None = knob(
        None, "Tokens of prompts and answers. auto is no limit.", integer, env=False, minimum=1, maximum=MAX_LIMIT
    )
    concurrent: int | None = knob(
        None, "Requests that may run at once. auto is no limit.", integer, env=False, minimum=1, maximum=MAX_LIMIT
    )


SECTIONS = (KeySettings,)


def run(argv: Sequence[str]) -> int:
    """Do one thing with the file.

    Raises:
        ConfigError: wrongly called, or the file is wrong.
    """
    parser = flags.parser("headrace keys", ABOUT, SECTIONS, EXAMPLES)
    settings = flags.read(parser, argv, SECTIONS).section(KeySettings)
    action, *names = settings.words or ("",)
    if action not in ("create", "list", "revoke") or len(names) != (action != "list"):
        raise ConfigError("keys: say create NAME, list or revoke NAME (see headrace keys --help)")
    if settings.file is None:
        raise ConfigError("keys: say which file, with --file FILE")
    lines = _lines(settings.file, must_exist=action != "create")
    keys = parse_keys("\n".join(lines))
    if action == "list":
        for key in keys:
            print(format_key(key).replace(f"sha256:{key.digest.hex()}", ",".join(sorted(key.scopes))))
    elif action == "create":
        _create(settings, names[0], lines, keys)
    else:
        _revoke(settings.file, names[0], lines, keys)
    return 0


def _create(settings: KeySettings, name: str, lines: list[str], keys: list[Key]) -> None:
    tenant = settings.tenant or name
    for each in (name, tenant):
        if not NAME.fullmatch(each):
            raise ConfigError("keys: names are letters, digits and . _ -, at most 64, a letter or a digit first")
    if any(key.name == name for key in keys):
        raise ConfigError(f"keys: there is a key called {name}; revoke it first")
    secret = new_secret()
    limits = Limits(settings.requests_per_minute, settings.tokens_per_minute, settings.concurrent)
    key = Key(name, digest_of(secret.encode()), tenant, frozenset(map(Scope, settings.scopes)), limits)
    if settings.file is not None:
        _write(settings.file, [*lines, format_key(key)])
    print(secret)


def _revoke(file: Path, name: str, lines: list[str], keys: list[Key]) -> None:
    if all(key.name != name for key in keys):
        raise ConfigError(f"keys: no key is called {name}")
    _write(file, [line for line in lines if not line.strip().startswith(f"{name}:")])


def _lines(file: Path, *, must_exist: bool) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"keys: there is no file {file}") from None
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys: cannot read {file}: {error}") from None


def _write(file: Path, lines: Sequence[str]) -> None:
    """All at once: a server that reads it in between sees the old file or the new one. A new file is for its owner's
    eyes only; another stays whose it was, or the server that has to hear of a revoked key could not read it."""
    target = file.resolve()
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        fresh = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write("".join(f"{line}\n" for line in lines))
            if target.exists():
                old = target.stat()
                os.chown(fresh, old.st_uid, old.st_gid)
                fresh.chmod(stat.S_IMODE(old.st_mode))
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"keys: cannot write {file}: {error.strerror}") from None
