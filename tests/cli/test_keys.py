"""``headrace keys`` writes what the server reads, and keeps no secret."""

import os
import subprocess
import sys
from pathlib import Path

from headrace.access import Keyring, Limits, Scope, parse_keys
from tests.cli.commands import command


def test_create_list_revoke(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    words = ["--file", str(file)]
    made = command("keys", "create", "alice", *words, "--requests-per-minute", "60", "--tenant", "acme")
    assert made.code == 0, made.err
    secret = made.out.strip()
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert command("keys", "create", "ops", *words, "--scopes", "metrics", "admin").code == 0
    ring = Keyring(parse_keys(file.read_text()))
    found = ring.find(secret.encode())
    assert found is not None
    assert (found.key.name, found.key.tenant) == ("alice", "acme")
    assert found.key.limits == Limits(requests_per_minute=60)
    listed = command("keys", "list", *words)
    assert listed.out.splitlines() == [
        "alice:inference tenant=acme requests_per_minute=60",
        "ops:admin,metrics scopes=admin,metrics",
    ]
    assert command("keys", "revoke", "alice", *words).code == 0
    assert [key.name for key in parse_keys(file.read_text())] == ["ops"]
    assert parse_keys(file.read_text())[0].scopes == {Scope.METRICS, Scope.ADMIN}


def test_wrong_calls(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    words = ["--file", str(file)]
    for arguments, message in (
        (["create"], "say create NAME"), (["list"], "which file"), (["list", *words], "there is no file"),
        (["create", "a b", *words], "names are letters"), (["create", "a", *words, "--scopes", "root"], "scopes"),
        (["create", "a", *words, "--concurrent", "0"], "below the least"), (["rotate", "a", *words], "say create NAME"),
    ):  # fmt: skip
        result = command("keys", *arguments)
        assert (result.code, message in result.err) == (2, True), result.err
    assert command("keys", "create", "a", *words).code == 0
    assert "revoke it first" in command("keys", "create", "a", *words).err
    assert "no key is called b" in command("keys", "revoke", "b", *words).err
    file.write_text("nonsense")
    assert "line 1" in command("keys", "create", "b", *words).err
    assert file.read_text() == "nonsense"


def test_a_file_stays_whose_it_was(tmp_path: Path) -> None:
    """A server of another user reads it on, through a link too; a comment in any script survives any locale."""
    file, link = tmp_path / "keys.txt", tmp_path / "link.txt"
    words = ["--file", str(link)]
    link.symlink_to(file)
    assert command("keys", "create", "a", *words).code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
    before = file.stat()
    file.write_text(file.read_text() + "# Zoë's\n", encoding="utf-8")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    create = [sys.executable, "-m", "headrace", "keys", "create", "b", *words]
    subprocess.run(create, check=True, capture_output=True, env=plain)
    assert command("keys", "revoke", "a", *words).code == 0
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert [key.name for key in parse_keys(file.read_text("utf-8"))] == ["b"]
    assert "# Zoë's" in file.read_text("utf-8")
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [file, link]
