"""Errors on their way through Ray, which passes on texts: tracebacks, and messages in a status."""

import json
import os
import re
from functools import cache
from typing import Any

from marship import errors
from marship.errors import LoadError, MarshipError, NotRunningError, ServerError
from marship.exchange.calls import BAD_REQUEST, HttpResponse, own_error

_MARKED = re.compile(r"<<marship (?P<error>\{.*?\})>>", re.DOTALL)
_NO_MODULE = re.compile(r"ModuleNotFoundError: (?P<what>No module named '[^']+')")
_LONGEST = 300


class ReplicaError(Exception):
    """An error of ours in a replica, which a client finds in the status of its deployment."""

    def __init__(self, error: MarshipError) -> None:
        told = json.dumps({"code": error.code, "message": str(error)})
        super().__init__(f"<<marship {told}>>")


@cache
def keep_output() -> None:
    """Have Ray write a node's warnings to standard error: a command's own output may be JSON.

    But nothing of a task that it tries again, with a traceback of dozens of lines, nor of an error
    of ours, which the command tells.
    """
    from ray._private import worker

    write = worker.print_to_stdstream

    def to_stderr(data: Any, ignore_prefix: bool) -> None:  # noqa: ANN401  Ray's
        text = "".join(data["lines"])
        if is_told(text) or "retries remaining" in text:
            return
        write({**data, "is_err": True}, ignore_prefix=ignore_prefix)

    worker.print_to_stdstream = to_stderr  # `log_to_driver` has no say in these


def refused(address: str, error: Exception) -> MarshipError:
    """The error of a connection to a cluster that Ray did not make."""
    text = str(error)
    if "ersion mismatch" in text:
        told = " ".join(line.strip() for line in text.splitlines() if ":" in line)[:300]
        return ServerError(
            f"the cluster at {address} must have the same versions of Ray and Python as this "
            f"environment, got: {told} Install the same here and there."
        )
    is_unreadable = "file cannot be opened or is empty" in text
    if is_unreadable or "token was found" in text:  # Ray has asked nobody
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        told = f"no readable one in {named}" if is_unreadable else "none"
        return ServerError(
            f"this user must have the token of the Ray cluster at {address}, got {told}. Set "
            "RAY_AUTH_TOKEN_PATH to a file with the cluster's own."
        )
    if "token" in text.lower() or "Unauthenticated" in text:
        return ServerError(
            f"the cluster at {address} must accept this user's Ray token, got a refusal. Set "
            "RAY_AUTH_TOKEN_PATH to a file with the cluster's own."
        )
    return NotRunningError(
        f"this machine must be a node of a Ray cluster at {address}, got: "
        f"{last_line(text)} Run ray start --address={address} here first."
    )


def found(text: str, what: str) -> MarshipError:
    """The error that a deployment's message carries.

    Args:
        text: The message, perhaps with a traceback in it.
        what: What had to load.
    """
    marked = _MARKED.search(text)
    if marked is not None:
        told = json.loads(marked["error"])
        return of_code(told["code"], told["message"])
    if missing := _NO_MODULE.search(text):
        return LoadError(
            f"every node must have the same packages, got {missing['what']} on one. Install "
            "marship[ray] there, in the Python that runs Ray."
        )
    return LoadError(f"{what} must load on Ray, got: {last_line(text)}")


def is_told(text: str) -> bool:
    """Whether a message carries an error of ours.

    Example:
        >>> is_told(f"Error: {ReplicaError(LoadError('no'))}"), is_told("Upscaling from 1 to 2.")
        (True, False)
    """
    return _MARKED.search(text) is not None


def of_code(code: str, message: str) -> MarshipError:
    """An error by its stable code."""
    return next((kind for kind in errors.kinds() if kind.code == code), LoadError)(message)


def last_line(text: str) -> str:
    """What a traceback or a log ends with."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:_LONGEST].rstrip(".") + "." if lines else "no message."


def checked(response: HttpResponse) -> HttpResponse:
    """Return the response, or raise the error it carries.

    Raises:
        MarshipError: Of the class that the response's code stands for.
    """
    if response.status < BAD_REQUEST:
        return response
    message = str(response.error.get("message") or response.text)
    error = (own_error(response.error) or ServerError)(message)
    error.status = response.status
    raise error
