"""Fetching over HTTP(S): bounded pages, and files that resume, are verified, and appear whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from headrace.errors import DownloadError
from headrace.weights.landing import Progress, storage_errors

TIMEOUT = 30.0
"""Seconds that a connection may stay silent."""
ATTEMPTS = 4
"""Tries of one download; each resumes where the last broke off."""
CHUNK = 1 << 18
MAX_PAGE_BYTES = 16 << 20


class FetchError(DownloadError):
    """A transfer failed in a way that a later try may not: the network, or the server's mood."""


def open_url(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """An open response. http and https only, certificates verified, proxies as the environment says.

    Credentials in the URL go into a header, for that host alone, and never into a message.

    Raises:
        FetchError: no connection, or the server failed.
        DownloadError: the server refused (4xx), or the URL is not http or https.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"{shown(url)}: only http and https addresses are fetched")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
    request.add_header("User-Agent", "headrace")
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    if parts.username:
        token = base64.b64encode(f"{parts.username}:{parts.password or ''}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        return urllib.request.build_opener(_WebOnly).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            kind = FetchError if error.code >= 500 or error.code in (408, 429) else DownloadError
            raise kind(f"{shown(url)}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        raise FetchError(f"{shown(url)}: cannot be reached: {getattr(error, 'reason', error)}") from error


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the web only: never to ftp, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise DownloadError(f"{shown(req.full_url)}: redirected to {scheme}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def shown(url: str) -> str:
    """The URL without credentials and query, fit for a message."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:300]


def fetch_page(url: str, accept: str) -> tuple[str, bytes, str]:
    """(content type, body, final URL) of a small page.

    Raises:
        DownloadError: as `open_url`, or the page is larger than 16 MiB.
    """
    with open_url(url, {"Accept": accept}) as response:
        try:
            body = response.read(MAX_PAGE_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(f"{shown(url)}: the connection broke: {error}") from error
        if len(body) > MAX_PAGE_BYTES:
            raise DownloadError(f"{shown(url)}: the page is larger than {MAX_PAGE_BYTES} bytes")
        return response.headers.get_content_type(), body, response.geturl()


def fetch_file(url: str, target: Path, *, sha256: str, size: int, progress: Progress | None = None) -> None:
    """Fetch ``url`` into ``target`` through ``target.part``, resuming what an earlier try left there.

    ``target`` appears only when all ``size`` bytes are there and their digest is right.

    Raises:
        DownloadError: refused, wrong size or digest, disk full or not writable, or ``ATTEMPTS`` tries failed.
    """
    part = target.with_name(target.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with storage_errors(part):
                _continue(url, part, size, progress)
            break
        except FetchError:
            if attempt == ATTEMPTS:
                raise
            time.sleep(0.2 * 2**attempt)
    with storage_errors(part):
        found = file_sha256(part)
        if found != sha256:
            part.unlink()
            raise DownloadError(
                f"{shown(url)}: the digest is sha256 {found}, not {sha256}; what was fetched is deleted"
            )
        part.replace(target)


def _continue(url: str, part: Path, size: int, progress: Progress | None) -> None:
    done = part.stat().st_size if part.exists() else 0
    if done > size:
        part.unlink()
        done = 0
    if done == size:
        return
    with open_url(url, {"Range": f"bytes={done}-"} if done else {}) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if done and not resumed:
            done = 0  # the server sends the whole file
        with part.open("r+b" if resumed else "wb") as file:
            file.seek(done)
            for chunk in _chunks(response, url):
                done += len(chunk)
                if done > size:
                    raise DownloadError(f"{shown(url)}: the server sends more than the {size} bytes expected")
                file.write(chunk)
                if progress is not None:
                    progress(done, size)
    if done < size:
        raise FetchError(f"{shown(url)}: the connection ended at {done} of {size} bytes")


def _chunks(response: Any, url: str) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except http.client.IncompleteRead as error:
            chunk = error.partial
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(f"{shown(url)}: the connection broke: {error}") from error
        if not chunk:
            return
        yield chunk


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
