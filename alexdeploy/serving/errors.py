"""Errors of requests, with the status that each protocol gives them."""

from __future__ import annotations

_MAX_MESSAGE = 1000
"""Characters of a message: names and shapes that it repeats may be as long as a body."""


class RequestError(Exception):
    """A request that gets no answer. `message` is for the client: it never contains paths or tracebacks.

    `status` is the HTTP status; `grpc_code` the name of the gRPC status code; `kind` the label of the metric.
    """

    status = 500
    grpc_code = "INTERNAL"
    kind = "internal"

    def __init__(self, message: str) -> None:
        self.message = message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}..."
        super().__init__(self.message)


class InvalidRequestError(RequestError):
    """Malformed JSON, a wrong shape or type, too many images, or an image that cannot be decoded."""

    status = 400
    grpc_code = "INVALID_ARGUMENT"
    kind = "invalid"


class UnauthorizedError(RequestError):
    """No token, or a wrong one."""

    status = 401
    grpc_code = "UNAUTHENTICATED"
    kind = "unauthorized"


class ForbiddenError(RequestError):
    """What a page of another site has a browser send, a host that is not allowed, or loading where that is not."""

    status = 403
    grpc_code = "PERMISSION_DENIED"
    kind = "forbidden"


class NotFoundError(RequestError):
    """An unknown model, version or path."""

    status = 404
    grpc_code = "NOT_FOUND"
    kind = "not_found"


class TooLargeError(RequestError):
    """A body over the limit, compressed or not."""

    status = 413
    grpc_code = "RESOURCE_EXHAUSTED"
    kind = "too_large"


class BusyError(RequestError):
    """The queue is full, the deadline has passed, the model is not ready, or the server is shutting down."""

    status = 503
    grpc_code = "UNAVAILABLE"
    kind = "busy"
    retry_after_seconds = 1
