"""A web server on the loopback that can be told to misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """Pages by path, and what was asked for. ``cut`` ends the next bodies after so many bytes, one entry each."""

    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    failures: dict[str, list[int]] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    ranges: bool = True
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """(path, Range, Authorization)"""
    url: str = ""
    before: Callable[[str], None] | None = None

    def asked(self, path: str) -> list[str | None]:
        """The Range headers of the requests for a path."""
        return [r for p, r, _ in self.requests if p == path]

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """What answers its requests."""
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Silence."""

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                site.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
                if site.before is not None:
                    site.before(self.path)
                failures = site.failures.get(self.path)
                if failures:
                    self.answer(failures.pop(0), "text/plain", b"no")
                elif self.path in site.redirects:
                    self.answer(302, "text/plain", b"", Location=site.redirects[self.path])
                elif self.path in site.pages:
                    self.page(*site.pages[self.path])
                else:
                    self.answer(404, "text/plain", b"no such page")

            def page(self, content_type: str, body: bytes) -> None:
                asked = self.headers.get("Range")
                if asked and site.ranges:
                    begin = int(asked.removeprefix("bytes=").split("-")[0])
                    span = f"bytes {begin}-{len(body) - 1}/{len(body)}"
                    self.answer(206, content_type, body[begin:], **{"Content-Range": span})
                else:
                    self.answer(200, content_type, body)

            def answer(self, status: int, content_type: str, body: bytes, **headers: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if site.cut and len(body) > site.cut[0]:
                    body = body[: site.cut.pop(0)]
                    self.close_connection = True
                with suppress(ConnectionError):  # the client may have heard enough
                    self.wfile.write(body)

        return Handler


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """The site on a free port of 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), site.handler())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
