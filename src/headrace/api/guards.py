"""What stands around every route: functions that wrap an ASGI application in another one."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection

from headrace.api.callers import Caller, Keys
from headrace.api.exchange import ClientGone, header, respond_error
from headrace.api.lifecycle import Lifecycle
from headrace.api.ports import ASGIApp, Message, Receive, Scope, Send
from headrace.api.routes import Route
from headrace.errors import Draining, Forbidden, HeadraceError, RateLimited, Unauthorized
from headrace.metrics import Recorder
from headrace.wire.failures import ErrorShape

log = logging.getLogger("headrace.api")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
UNMATCHED = "none"
"""The handler label of what no route took: paths are the caller's and must not become labels."""


def account(app: ASGIApp, recorder: Recorder, shape_of: Callable[[bytes], ErrorShape]) -> ASGIApp:
    """Outermost: gives every exchange an id, turns what is raised into a response, and counts it.

    ``shape_of`` says in which shape errors on a path are told, where the body has not said it already.
    """

    async def accounted(scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 0
        request_id = _request_id(scope)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await app(scope, receive, send_with_id)
        except ClientGone:
            pass
        except Exception as error:
            if not isinstance(error, HeadraceError) or status:
                log.exception("request %s failed", request_id.decode())
            if status:  # too late for a status: a cut connection is the only way left to say that this is no end
                _disconnect(scope)
            else:
                shape = scope.get("headrace.errors") or shape_of(scope["raw_path"])
                await respond_error(send_with_id, error, scope.get("headrace.error_headers"), shape)
                status = status or shape.status(error)
        finally:
            handler = scope.get("headrace.route", UNMATCHED)
            recorder.on_http(scope["method"], handler, status or 499, time.monotonic() - began)

    return accounted


Exchange = tuple[str, bytes]
"""A method and a path."""


def guard_keys(
    app: ASGIApp, keys: Keys, find: Callable[[str, bytes], Route | None], *, share_prefixes: bool, recorder: Recorder
) -> ASGIApp:
    """Without a key only what is open answers; with one, what the key is good for, as far as its quota goes.

    The path is compared as it came in, byte for byte, and everything that is not an open route is closed: no way of
    writing a path can open one.
    """

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        found = find(scope["method"], scope["raw_path"])
        if not keys.asked_for or (found is not None and found.open):
            scope["headrace.caller"] = Caller("ip:" + str((scope.get("client") or ("",))[0]))
            await app(scope, receive, send)
            return
        secret = _given_key(scope)
        account = None if secret is None else keys.ring.find(secret)
        if account is None:
            recorder.count("headrace:access_refusals", 1, "key")
            raise Unauthorized("send a valid API key in the header Authorization: Bearer KEY, or in x-api-key")
        key, quota = account.key, account.quota
        if found is not None and found.access not in key.scopes:
            recorder.count("headrace:access_refusals", 1, "scope")
            raise Forbidden(f"this key is not good for {found.access}")
        tenant = "" if share_prefixes else key.tenant
        scope["headrace.caller"] = Caller("key:" + key.tenant, tenant, quota)
        if found is None or not found.metered:
            await app(scope, receive, send)
            return
        try:
            quota.enter(time.monotonic())
        except RateLimited:
            recorder.count("headrace:access_refusals", 1, "quota")
            raise
        try:
            await app(scope, receive, send)
        finally:
            quota.leave()

    return guarded


def _given_key(scope: Scope) -> bytes | None:
    """``Authorization: Bearer KEY``, or ``x-api-key: KEY`` as Anthropic's clients send it."""
    authorization = header(scope, b"authorization")
    if authorization is None:
        return header(scope, b"x-api-key")
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def refuse_when_draining(app: ASGIApp, lifecycle: Lifecycle, unlocked: Collection[Exchange]) -> ASGIApp:
    """While the server drains, only health and metrics answer."""

    async def gated(scope: Scope, receive: Receive, send: Send) -> None:
        if not lifecycle.admitting and (scope["method"], scope["raw_path"]) not in unlocked:
            raise Draining("the server is shutting down; try another instance")
        await app(scope, receive, send)

    return gated


def _request_id(scope: Scope) -> bytes:
    """The caller's id if it is harmless to repeat, else one of our own. Internal ids are never taken from it."""
    given = header(scope, b"x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else secrets.token_hex(16).encode()


def _disconnect(scope: Scope) -> None:
    cut = scope.get("extensions", {}).get("headrace.disconnect")
    if cut is not None:
        cut()
