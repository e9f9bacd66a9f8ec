"""Statuses of gRPC for those of HTTP."""

from collections.abc import Mapping
from http import HTTPStatus

import grpc
import orjson

from marship.engines.gateway.upstream import UpstreamResponse
from marship.errors import NotFoundError, ServerError

PASSED_ON = ("x-request-id", "server-timing", "retry-after")
"""Headers of a response that become trailing metadata."""
CODE = "error-code"
"""The trailing metadata with the error's stable code."""

_BUSY = "busy"
_LONGEST_MESSAGE = 2000  # characters: a status travels in a header
_OF_HTTP: dict[int, grpc.StatusCode] = {
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    HTTPStatus.BAD_GATEWAY: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Refusal(Exception):  # noqa: N818  it is a response, not a fault
    """A call that ends with another status than OK.

    Attributes:
        status: Of gRPC.
        message: What was wrong.
        code: Our stable code for it.
        headers: Of the HTTP response.
    """

    def __init__(
        self,
        status: grpc.StatusCode,
        message: str,
        code: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message[:_LONGEST_MESSAGE], code
        self.headers = headers or {}

    @property
    def trailing(self) -> tuple[tuple[str, str], ...]:
        """The trailing metadata."""
        return ((CODE, self.code), *trailing(self.headers))


def busy(limit: str) -> Refusal:
    """The refusal of a call that is one too many.

    Example:
        >>> busy("at most 2 calls may run at a time").message
        'at most 2 calls may run at a time, got more. Retry later.'
    """
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{limit}, got more. Retry later.",
        _BUSY,
        {"retry-after": "1"},
    )


def trailing(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Trailing metadata for the headers of a response."""
    return tuple((name, headers[name]) for name in PASSED_ON if name in headers)


def refusal(response: UpstreamResponse) -> Refusal:
    """The refusal for a response that is an error.

    A full queue is 503 as a lost worker is, yet the client's share to change: RESOURCE_EXHAUSTED.

    Example:
        >>> busy = UpstreamResponse(503, {}, b'{"code": "busy", "message": "Retry later."}')
        >>> refusal(busy).status.name
        'RESOURCE_EXHAUSTED'
    """
    try:
        error = orjson.loads(response.body)
        code, message = error["code"], str(error["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        code, message = None, f"the server must say what was wrong, got HTTP {response.status}."
    if not isinstance(code, str):  # it comes from the engine, which has no codes of ours
        not_found = response.status == HTTPStatus.NOT_FOUND
        code = NotFoundError.code if not_found else ServerError.code
    other = (
        grpc.StatusCode.INTERNAL
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        else grpc.StatusCode.INVALID_ARGUMENT
    )
    status = _OF_HTTP.get(response.status, other)
    if code == _BUSY:
        status = grpc.StatusCode.RESOURCE_EXHAUSTED
    return Refusal(status, message, code, response.headers)
