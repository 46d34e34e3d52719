"""Every error that headrace raises on purpose, as one tree.

HeadraceError
├── RequestError                 the caller's fault; each knows its HTTP status
│   ├── InvalidRequest           400  a field is wrong: names the field, the limit and the fix
│   ├── Unauthorized             401
│   ├── Forbidden                403  understood, and not allowed
│   ├── ModelNotFound            404
│   ├── RouteNotFound            404
│   ├── ResponseNotFound         404  of /v1/responses: never stored, or not any more
│   ├── MethodNotAllowed         405
│   ├── RequestTimeout           408
│   ├── Conflict                 409  something else is doing it already
│   ├── PayloadTooLarge          413
│   ├── UnsupportedMediaType     415
│   ├── Unsatisfiable            400  what the answer was held to cannot be followed to its end
│   └── Unsupported              400  a field or feature that is not honoured, refused by name
├── OverloadError                try again later; carries ``retry_after`` seconds
│   ├── QueueFull                429
│   ├── RateLimited              429  the key has used up what it may
│   ├── ModelBusy                503  the model is not in memory, and was not there in time
│   ├── Draining                 503
│   └── DeadlineExceeded         504
├── EngineError                  500  the server's fault
│   ├── EngineDead               503  the step loop has stopped
│   └── ModelFailed              503  the model is not in memory and cannot be brought there
├── ModelError                   a model cannot be loaded (start-up, never a request)
│   ├── ModelFileError           a file is malformed, truncated or lies about its contents
│   ├── UnsupportedModel         a well-formed model that headrace does not serve
│   └── DownloadError            a model could not be fetched
├── MemoryPlanError              the model, or one sequence of it, does not fit
└── ConfigError                  a setting is unknown or has a bad value: names the source
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Root of the tree. The message is written for the person who has to act on it."""

    status: int = 500


class RequestError(HeadraceError):
    """The request cannot be served as it is. ``param`` names the offending field, where there is one."""

    status = 400

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(RequestError):
    """A field has a wrong type or a value out of its limits."""


class Unsupported(RequestError):
    """A field or feature that headrace does not honour: refused, never ignored."""


class Unsatisfiable(RequestError):
    """What the answer was held to cannot be followed to its end: found out on the way."""


class Unauthorized(RequestError):
    """No API key, or a wrong one."""

    status = 401


class Forbidden(RequestError):
    """Understood, and not allowed: not to this key, or not on this server."""

    status = 403


class ModelNotFound(RequestError):
    """The named model is not served here. ``name`` is what was asked for, fit to be shown."""

    status = 404

    def __init__(self, message: str, param: str | None = None, name: str | None = None) -> None:
        super().__init__(message, param)
        self.name = name


class RouteNotFound(RequestError):
    """Nothing is served at this path."""

    status = 404


class ResponseNotFound(RequestError):
    """No response of that id is stored for whoever asks."""

    status = 404


class MethodNotAllowed(RequestError):
    """The path is served, by another method."""

    status = 405


class RequestTimeout(RequestError):
    """The request took too long to arrive."""

    status = 408


class Conflict(RequestError):
    """Something that excludes this request is going on."""

    status = 409


class PayloadTooLarge(RequestError):
    """The body is larger than the limit."""

    status = 413


class UnsupportedMediaType(RequestError):
    """The body's content type is not the one that the route takes."""

    status = 415


class OverloadError(HeadraceError):
    """The server could serve this at another time. ``retry_after`` is in seconds."""

    status = 503

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(OverloadError):
    """The waiting queue is at its limit."""

    status = 429


class RateLimited(OverloadError):
    """The key has used up what it may."""

    status = 429


class ModelBusy(OverloadError):
    """The model was not in memory in time; it may be later."""


class Draining(OverloadError):
    """The server is shutting down and takes no new work."""


class DeadlineExceeded(OverloadError):
    """The request's deadline passed before it finished."""

    status = 504


class EngineError(HeadraceError):
    """Something went wrong inside; the request is not at fault."""


class EngineDead(EngineError):
    """The step loop has stopped."""

    status = 503


class ModelFailed(EngineError):
    """The model is not in memory and cannot be brought there."""

    status = 503


class ModelError(HeadraceError):
    """A model cannot be loaded."""


class ModelFileError(ModelError):
    """A model file is malformed, truncated, or lies about its contents. The message names the file."""


class UnsupportedModel(ModelError):
    """A well-formed model of a kind that headrace does not serve."""


class DownloadError(ModelError):
    """A model could not be fetched. The message says what to do offline."""


class MemoryPlanError(HeadraceError):
    """The model does not fit in memory. The message itemises the plan and suggests one fix."""


class ConfigError(HeadraceError):
    """A setting is unknown or has a bad value. The message names the setting and where it came from."""
