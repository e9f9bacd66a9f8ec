"""What TorchServe's error responses mean, by their status, type and message."""

from marship.errors import (
    MarshipError,
    NotFoundError,
    RequestError,
    ServerError,
    TokenError,
    TooLargeError,
    WorkerDiedError,
)
from marship.exchange.calls import BAD_REQUEST, SERVER_FAULT, HttpResponse, Side, own_error
from marship.exchange.retries import Crash

_NOT_FOUND, _TOO_LARGE, _UNAVAILABLE = 404, 413, 503
_REFUSED_TOKEN = "InvalidKeyException"  # noqa: S105  a type of error
_NO_SUCH_PATH = "ResourceNotFoundException"
_CRASHES = {"Worker died": Crash.DIED, "Worker scaled down": Crash.SCALED_DOWN}  # WorkerThread.java
_ADVICE = {  # by the type of the error
    "ConflictStatusException": "Unregister it first, or package another version.",
    "InvalidModelVersionException": "Make another version the default first.",
    "InternalServerException": "The reason is in the worker's log: marship logs",
    "MethodNotAllowedException": "Set enable_model_api=true in config.properties.",
    "ServiceUnavailableException": "Or its workers are busy: retry, or run marship scale MODEL 1",
}


def is_token_refused(response: HttpResponse) -> bool:
    """Whether the token was rejected: TorchServe responds with 400, the proxy with 401."""
    if response.status == TokenError.status:
        return bool(response.error.get("code") == TokenError.code)
    return response.status == BAD_REQUEST and response.error.get("type") == _REFUSED_TOKEN


def has_no_worker(response: HttpResponse) -> bool:
    """Whether TorchServe has no worker for the model, or a full queue: it says the same of both."""
    return (
        response.status == _UNAVAILABLE
        and response.error.get("type") == "ServiceUnavailableException"
    )


def is_of_another_api(response: HttpResponse, side: Side) -> bool:
    """Whether the address is not that of this API (unknown path), as opposed to an unknown model.

    For a prediction a handler, too, may respond with "not found", with its own code.
    """
    if response.status != _NOT_FOUND:
        return False
    kind = response.error.get("type")
    return kind == _NO_SUCH_PATH or (side != "inference" and not isinstance(kind, str))


def crash(response: HttpResponse) -> Crash | None:
    """How the worker ended while handling the request; a handler's own 500 is not a crash."""
    if response.error.get("code") == WorkerDiedError.code:  # of the direct address
        return Crash.DIED
    if response.status < SERVER_FAULT or response.error.get("type") != "InternalServerException":
        return None
    message = str(response.error.get("message"))
    return next((kind for start, kind in _CRASHES.items() if message.startswith(start)), None)


def checked(response: HttpResponse) -> HttpResponse:
    """Return the response, or raise the error it carries.

    Raises:
        MarshipError: Of the class that the response's code or status stands for.
    """
    if response.status < BAD_REQUEST:
        return response
    said = response.error.get("message") or response.error.get("error") or response.text
    message = str(said or f"the server responded with status {response.status} and no message")
    advice = _ADVICE.get(str(response.error.get("type")))
    if advice:
        message = f"{message.rstrip('.')}. {advice}"
    error = _error_class(response)(message)
    error.status = response.status
    raise error


def _error_class(response: HttpResponse) -> type[MarshipError]:
    """By the code of a handler or of the proxy, else by TorchServe's type, else by the status."""
    if own := own_error(response.error):
        return own
    if response.error.get("type") == _REFUSED_TOKEN:
        return TokenError
    if crash(response):
        return WorkerDiedError
    if response.status == _NOT_FOUND:
        return NotFoundError
    if response.status == _TOO_LARGE:
        return TooLargeError
    has_code = isinstance(response.error.get("code"), str)  # TorchServe's is the status
    return RequestError if response.status < SERVER_FAULT and has_code else ServerError
