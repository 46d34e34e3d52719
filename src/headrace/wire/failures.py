"""Errors → what a dialect makes of them; OpenAI's error object is the same for a status code and in a stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from headrace.errors import EngineDead, HeadraceError, ModelFailed, OverloadError, QueueFull, RequestError
from headrace.wire.chunks import DONE, to_json

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    409: "ConflictError",
    413: "PayloadTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    431: "HeadersTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
    504: "GatewayTimeoutError",
}
_LONGEST_GUESS = 120
"""Seconds; how long a queue lasts is a guess, and a client that is told an hour never comes back."""
INTERNAL = "something went wrong in the server; its log has the details under this request's id"


class ErrorShape(Struct, frozen=True):
    """How one dialect says that something went wrong."""

    body: Callable[[Exception], Any]
    """The JSON body of a response that has ``status``."""
    event: Callable[[Exception], bytes]
    """The end of a stream that fails after it has begun, when it is too late for a status."""
    status: Callable[[Exception], int]


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


def message_of(error: Exception) -> str:
    """What may be told of an exception: nothing about the inside, unless it was raised on purpose."""
    return str(error) if isinstance(error, HeadraceError) else INTERNAL


def describe(error: Exception) -> dict[str, Any]:
    """The error object of an exception. What was not raised on purpose tells nothing about the inside."""
    param = error.param if isinstance(error, RequestError) else None
    return error_json(message_of(error), status_of(error), param)


def status_of(error: Exception) -> int:
    """The HTTP status of an exception."""
    return error.status if isinstance(error, HeadraceError) else 500


def retry_headers(error: Exception) -> list[tuple[bytes, bytes]]:
    """``Retry-After`` in whole seconds where trying again helps; OpenAI's client is told not to where it cannot."""
    if isinstance(error, OverloadError):
        longest = _LONGEST_GUESS if isinstance(error, QueueFull) else math.inf
        return [(b"retry-after", str(max(1, math.ceil(min(error.retry_after, longest)))).encode())]
    if isinstance(error, EngineDead | ModelFailed) or not isinstance(error, HeadraceError):
        return [(b"x-should-retry", b"false")]
    return []


def error_event(error: Exception) -> bytes:
    """The end of a stream that failed after it had begun: the error, then ``[DONE]``."""
    return f"data: {to_json(describe(error))}\n\n".encode() + DONE


OPENAI = ErrorShape(describe, error_event, status_of)
