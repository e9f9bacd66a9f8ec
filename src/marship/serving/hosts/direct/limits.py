"""What a client may take of a server, and the refusal of what is more."""

from dataclasses import dataclass
from http import HTTPStatus

import orjson

from marship.errors import MarshipError
from marship.serving.message import JSON_TYPE, MAX_REQUEST_BYTES, Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may take of a server.

    Attributes:
        request_bytes: The largest body.
        head_bytes: The largest request line with its headers.
        target_bytes: The longest path with its query.
        headers: The most headers.
        head_s: How long a head may take from its first byte.
        body_s: How long a body may take, and a second more for each `body_rate` bytes of it.
        body_rate: Bytes per second that a client sends at least, or reads.
        idle_s: How long a connection without a request stays open.
        stalled_s: How long a client may read nothing of a response that waits for it.
        linger_s: How long what a refused client still sends is read and dropped, so that it gets
            its response.
        relayed_s: How long a connection that is relayed to the engine may be silent.
        pipelined: The most requests of one connection that are answered at the same time.
        connections: The most connections.
        unsent_bytes: The most bytes of responses that wait for clients to read them, of all
            connections together; beyond it those that read nothing are closed, and beyond twice
            as much those that read, too.
    """

    request_bytes: int = MAX_REQUEST_BYTES
    head_bytes: int = 1 << 14
    target_bytes: int = 1 << 13
    headers: int = 100
    head_s: float = 10.0
    body_s: float = 20.0
    body_rate: int = 1 << 16
    idle_s: float = 75.0
    stalled_s: float = 20.0
    linger_s: float = 2.0
    relayed_s: float = 300.0
    pipelined: int = 8
    connections: int = 4096
    unsent_bytes: int = 1 << 28


class StatusError(MarshipError):
    """A refusal with a status of HTTP that no other error has.

    Attributes:
        allow: Methods that the path has, for 405.
        is_fatal: Whether the connection must end: where the next request begins is unknown.
        retry_after_s: When to try again; None says nothing of it.
    """

    def __init__(  # noqa: PLR0913  keyword-only
        self,
        status: int,
        error_code: str,
        message: str,
        *,
        allow: str = "",
        is_fatal: bool = False,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.error_code = status, error_code
        self.allow, self.is_fatal, self.retry_after_s = allow, is_fatal, retry_after_s


def code_of(error: MarshipError) -> str:
    """The stable code for clients and metrics."""
    return error.error_code if isinstance(error, StatusError) else error.code


def error_reply(error: MarshipError) -> Reply:
    """The response that says what was wrong."""
    headers: list[tuple[str, str]] = []
    if isinstance(error, StatusError):
        headers += [("allow", error.allow)] * bool(error.allow)
        if error.retry_after_s is not None:
            headers.append(("retry-after", str(error.retry_after_s)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers.append(("www-authenticate", "Bearer"))
    body = orjson.dumps({"code": code_of(error), "message": str(error)})
    return Reply(body, JSON_TYPE, error.status, tuple(headers), code=code_of(error))


def too_late(limit_s: float | None = None) -> StatusError:
    """The response to a request that took longer than its model may."""
    within = f"within {limit_s:g} s" if limit_s is not None else "within its timeout"
    return StatusError(
        504,
        "response_timeout",
        f"the worker must answer {within}, got no response in time. Send less in "
        "one request, or raise the model's timeout.",
    )


def busy(queue: int) -> StatusError:
    """The refusal of a request behind too many others."""
    return StatusError(
        503,
        "busy",
        f"at most {queue} requests may wait for this worker, got more. Retry later, or scale the "
        "model up.",
        retry_after_s=1,
    )


def worker_died() -> StatusError:
    """The response to a request that a worker took with it."""
    return StatusError(
        503,
        "worker_died",
        "the worker must live until it has responded, got none that lives. Retry; the server's log "
        "says why it died.",
        retry_after_s=1,
    )


def unstaffed(model: str, version: str | None) -> StatusError:
    """The response where a model, or one version of it, has no worker."""
    named = f"{model} version {version}" if version else model
    return StatusError(
        503,
        "no_worker",
        f"{named} must have a worker that is ready, got none. Retry, or scale it up.",
        retry_after_s=1,
    )


def unplaced() -> StatusError:
    """The response to a request that no worker keeps."""
    return StatusError(
        503,
        "no_worker",
        "a worker must take the request, got it back from all. Retry; the server's log says more.",
        retry_after_s=1,
    )


def too_many(most: int) -> StatusError:
    """The refusal of a client beyond the most that may be connected."""
    return StatusError(
        503, "busy", f"at most {most} clients may be connected, got more.", retry_after_s=1
    )


def too_slow() -> StatusError:
    """The refusal of a request that took too long to come."""
    return StatusError(
        408, "timeout", "a request must be sent without long pauses, got a part of it."
    )


def head_too_large(limits: Limits) -> StatusError:
    """The refusal of a head that has no end within the limit."""
    return StatusError(
        431,
        "too_large",
        f"the request line and headers must have {limits.head_bytes} bytes at most, got more.",
    )
