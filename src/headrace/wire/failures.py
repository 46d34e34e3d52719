"""Errors → OpenAI's error object, the same for a status code and for an event in the middle of a stream."""

from __future__ import annotations

from typing import Any

from headrace.errors import EngineDead, HeadraceError, OverloadError, RequestError
from headrace.wire.chunks import DONE, to_json

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "PayloadTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    431: "HeadersTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
    504: "GatewayTimeoutError",
}
INTERNAL = "something went wrong in the server; its log has the details under this request's id"


def error_json(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}`` with vLLM's type names; ``code`` is the HTTP status."""
    return {
        "error": {
            "message": message,
            "type": TYPES.get(status, "InternalServerError"),
            "param": param,
            "code": status,
        }
    }


def describe(error: Exception) -> dict[str, Any]:
    """The error object of an exception. What was not raised on purpose tells nothing about the inside."""
    if not isinstance(error, HeadraceError):
        return error_json(INTERNAL, 500)
    param = error.param if isinstance(error, RequestError) else None
    return error_json(str(error), error.status, param)


def status_of(error: Exception) -> int:
    """The HTTP status of an exception."""
    return error.status if isinstance(error, HeadraceError) else 500


def retry_headers(error: Exception) -> list[tuple[bytes, bytes]]:
    """``Retry-After`` in whole seconds where trying again helps; OpenAI's client is told not to where it cannot."""
    if isinstance(error, OverloadError):
        return [(b"retry-after", str(max(1, min(120, round(error.retry_after)))).encode())]
    if isinstance(error, EngineDead) or not isinstance(error, HeadraceError):
        return [(b"x-should-retry", b"false")]
    return []


def error_event(error: Exception) -> bytes:
    """The end of a stream that failed after it had begun: the error, then ``[DONE]``."""
    return f"data: {to_json(describe(error))}\n\n".encode() + DONE
