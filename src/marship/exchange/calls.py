"""One HTTP exchange as plain data, without I/O, shared by the blocking and asyncio clients.

A *flow* is a generator that yields calls and pauses, is sent the responses, and returns a result.
Each client runs flows on its own transport; a transport's error is thrown into the flow where it
is suspended, so that a flow can clean up.
"""

import ssl
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote

import orjson

from marship.errors import (
    MarshipError,
    NotFoundError,
    NotRunningError,
    RequestError,
    ServerError,
    TokenError,
    TooLargeError,
    UsageError,
    WorkerDiedError,
    kinds,
)

T = TypeVar("T")
Side = Literal["inference", "management", "metrics"]
"""Which of the server's APIs."""

LINES_TYPE = "application/jsonl"
OK, BAD_REQUEST, NOT_FOUND, TOO_LARGE, SERVER_FAULT = 200, 400, 404, 413, 500
REFUSED_TOKEN = "InvalidKeyException"  # noqa: S105  the type that TorchServe gives a refusal
_NO_SUCH_PATH = "ResourceNotFoundException"
_SHOWN_BYTES = 300
_DIED = "Worker died"
_DEATHS = (_DIED, "Worker scaled down")  # WorkerThread.java, with status 500 or 507
_ADVICE = {  # by the type of TorchServe's error
    "ConflictStatusException": "Unregister it first, or package another version.",
    "InvalidModelVersionException": "Make another version the default first.",
    "InternalServerException": "The reason is in the worker's log: marship logs",
    "MethodNotAllowedException": "Set enable_model_api=true in config.properties.",
    "ServiceUnavailableException": "Its workers may also be busy: retry, or scale it up.",
}


@dataclass(frozen=True, slots=True)
class Call:
    """A request: API, method, path, parameters, headers and body."""

    side: Side
    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    streams: bool = False  # whether to stream the response's lines
    is_retryable: bool = False  # whether it may be retried

    def with_token(self, token: str | None) -> "Call":
        """The same call with a bearer token."""
        if token is None:
            return self
        return replace(self, headers={**self.headers, "Authorization": f"Bearer {token}"})


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this long before continuing."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Blocking local work, run in a thread by asyncio."""

    run: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response. Header names are in lower case.

    A streamed response has lines in place of a body: an iterator, or an async iterator.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    lines: Any = None

    @property
    def content_type(self) -> str:
        """The media type without its parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def has_lines(self) -> bool:
        """Whether the body is JSON lines: a model that does not stream sends a plain response."""
        return self.status < BAD_REQUEST and self.content_type == LINES_TYPE

    def json(self) -> Any:  # noqa: ANN401  any JSON value
        """The decoded body.

        Raises:
            ServerError: It is not JSON.
        """
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise ServerError(
                f"the server's response must be JSON, got {self.body[:_SHOWN_BYTES]!r}."
            ) from error


Step = Call | Pause | Work
Flow = Generator[Step, Any, T]
"""Yields steps, is sent each call's `HttpResponse` or the work's result, and returns a result."""


class Destination(Protocol):
    """The server that calls are sent to.

    Attributes:
        tls: The trusted CA certificates; None is the system's.
    """

    tls: ssl.SSLContext | None

    def url(self, call: Call) -> str:
        """The URL of a call, without its query parameters."""

    def check_peer(self, base: str, line: Any) -> None:  # noqa: ANN401  a socket or asyncio's
        """Make sure that a new connection is to the intended server."""

    def not_reachable(self, url: str) -> NotRunningError:
        """The error for a connection that failed."""


def path(*parts: str) -> str:
    """A path of these segments, each percent-encoded.

    Raises:
        UsageError: A segment has a lone surrogate, which UTF-8 cannot encode.
    """
    try:
        return "".join(f"/{quote(part, safe='')}" for part in parts)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a name or a version must be text that UTF-8 can hold, got {error.object!r}."
        ) from error


class Lines:
    """Splits a body that arrives in chunks into lines."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that the next chunk completes."""
        if b"\n" not in data:
            self._chunks.append(data)
            return []
        *lines, rest = b"".join([*self._chunks, data]).split(b"\n")
        self._chunks = [rest]
        return [line for line in lines if line]

    def end(self) -> list[bytes]:
        """The last line, if it has no line end."""
        return self.feed(b"\n")


def line_value(line: bytes) -> Any:  # noqa: ANN401  any JSON value
    """The value of a line of a streamed response.

    Raises:
        MarshipError: The line is an error message, or is not JSON.
    """
    value = HttpResponse(OK, {}, line).json()
    if isinstance(value, dict) and isinstance(value.get("code"), str) and "message" in value:
        raise _error_class(SERVER_FAULT, value)(str(value["message"]))
    return value


def is_token_refused(response: HttpResponse) -> bool:
    """Whether the token was rejected: TorchServe responds with 400, the proxy with 401."""
    problem = _problem(response)
    if response.status == TokenError.status:
        return problem.get("code") == TokenError.code
    return response.status == BAD_REQUEST and problem.get("type") == REFUSED_TOKEN


def is_of_another_api(response: HttpResponse, side: Side) -> bool:
    """Whether the address is not that of this API (unknown path), as opposed to an unknown model.

    For a prediction a handler, too, may respond with "not found", with its own code.
    """
    if response.status != NOT_FOUND:
        return False
    kind = _problem(response).get("type")
    return kind == _NO_SUCH_PATH or (side != "inference" and not isinstance(kind, str))


def is_death(response: HttpResponse) -> bool:
    """Whether the worker crashed while handling the request; a handler's own 500 is not a crash."""
    return response.status >= SERVER_FAULT and _tells_death(_problem(response))


def may_be_timeout(response: HttpResponse) -> bool:
    """Whether TorchServe may have killed the worker for exceeding its responseTimeout.

    The response is the same as after a crash, so the elapsed time must decide.
    """
    return is_death(response) and str(_problem(response).get("message")).startswith(_DIED)


def _tells_death(problem: Mapping[str, Any]) -> bool:
    said = str(problem.get("message"))
    return problem.get("type") == "InternalServerException" and said.startswith(_DEATHS)


def checked(response: HttpResponse) -> HttpResponse:
    """Return the response, or raise the error it carries.

    Raises:
        MarshipError: Of the class that the response's code or status stands for.
    """
    if response.status < BAD_REQUEST:
        return response
    problem = _problem(response)
    said = problem.get("message") or problem.get("error") or _text(response.body)
    message = str(said or f"the server responded with status {response.status} and no message")
    advice = _ADVICE.get(str(problem.get("type")))
    if advice:
        message = f"{message.rstrip('.')}. {advice}"
    error = _error_class(response.status, problem)(message)
    error.status = response.status
    raise error


def _text(body: bytes) -> str:
    return body[:_SHOWN_BYTES].decode("utf-8", "replace")


def _problem(response: HttpResponse) -> dict[str, Any]:
    try:
        problem = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _error_class(status: int, problem: Mapping[str, Any]) -> type[MarshipError]:
    code = problem.get("code")
    if isinstance(code, str):  # a handler's or the proxy's; TorchServe's is the status
        for kind in (*kinds(RequestError), *kinds(ServerError)):
            if kind.code == code:
                return kind
    if problem.get("type") == REFUSED_TOKEN:
        return TokenError
    if _tells_death(problem):
        return WorkerDiedError
    if status == NOT_FOUND:
        return NotFoundError
    if status == TOO_LARGE:
        return TooLargeError
    return RequestError if status < SERVER_FAULT and isinstance(code, str) else ServerError
