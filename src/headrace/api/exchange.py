"""One HTTP exchange's small change: reading a bounded JSON body, writing JSON, writing an error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from headrace.api.ports import Receive, Scope, Send
from headrace.api.settings import ServerSettings
from headrace.errors import (
    Draining,
    HeadraceError,
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from headrace.wire.body import parse_json
from headrace.wire.chunks import to_json
from headrace.wire.failures import OPENAI, ErrorShape, retry_headers

Header = tuple[bytes, bytes]
Headers = Sequence[Header]
JSON: Headers = [(b"content-type", b"application/json")]
_CLOSE = (b"connection", b"close")
_DISCARD = 8
"""Times the limit: how much of a body that is too large is read only to be thrown away."""
_UNREAD_BODY = (408, 413)


class ClientGone(Exception):  # not an error of anyone's: there is nobody to tell
    """The client went away before its request was complete."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a header, None if it is not there. ``name`` is in lower case."""
    return next((value for key, value in scope["headers"] if key == name), None)


async def respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """A whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def respond_json(send: Send, document: Any, status: int = 200, headers: Headers | None = None) -> None:
    """A whole JSON response."""
    await respond(send, status, to_json(document).encode("utf-8", "replace"), [*JSON, *(headers or [])])


async def respond_error(send: Send, error: Exception, extra: Headers | None = None, shape: ErrorShape = OPENAI) -> None:
    """An error in the dialect's shape, with the headers that tell clients whether to come again."""
    status = shape.status(error)
    headers = [*retry_headers(error), *(extra or [])]
    if isinstance(error, Draining) or status in _UNREAD_BODY:
        headers.append(_CLOSE)
    await respond_json(send, shape.body(error), status, headers)


async def read_json(
    scope: Scope, receive: Receive, settings: ServerSettings, *, any_media_type: bool = False
) -> dict[str, Any]:
    """The request's body as a JSON object; nothing larger than ``settings.max_body_bytes`` is ever held.

    With ``any_media_type`` the body may be called something else than JSON (curl's ``-d`` says that it is a form), but
    not by a web page: what a browser sends without asking first, in the name of whoever looks at the page, always
    carries an Origin.

    Raises:
        UnsupportedMediaType: not application/json, or compressed.
        PayloadTooLarge: by its announced or by its real length.
        RequestTimeout: it did not arrive within ``settings.body_timeout`` seconds.
        InvalidRequest: it is no JSON object.
        ClientGone: the connection closed first; `headrace.api.guards.account` takes care of that.
    """
    max_bytes, timeout = settings.max_body_bytes, settings.body_timeout
    kind = (header(scope, b"content-type") or b"").split(b";")[0].strip().lower()
    if kind != b"application/json" and (not any_media_type or header(scope, b"origin") is not None):
        raise UnsupportedMediaType("send the body as JSON with the header Content-Type: application/json")
    if (header(scope, b"content-encoding") or b"identity").lower() != b"identity":
        raise UnsupportedMediaType("compressed bodies are not supported; send it without Content-Encoding")
    announced = header(scope, b"content-length")
    if announced is not None and (not announced.isdigit() or len(announced) > 18):
        raise InvalidRequest("the Content-Length header is not a number")
    if announced is not None and int(announced) > _DISCARD * max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(timeout):
            raw = await _read(receive, max_bytes)
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {timeout:g} seconds") from None
    return parse_json(raw)


async def _read(receive: Receive, max_bytes: int) -> bytes:
    """The body. One that is too large is read on for a while and thrown away: most clients send all of it before they
    look at an answer, and would see a reset connection instead of the reason."""
    body = bytearray()
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size <= max_bytes:
            body += piece
        else:
            body.clear()
        if not message.get("more_body", False) or size > _DISCARD * max_bytes:
            break
    if size > max_bytes:
        raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> HeadraceError:
    return PayloadTooLarge(f"the body is larger than {max_bytes} bytes, the limit of this server")
