"""`marship check`: load an archive without a server, before registering it.

The archive is extracted into a private folder and loaded in a separate process as in a worker: with
the archive's own handler and copy of marship. So its code is run: verify the signature of an
untrusted archive first.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marship import arguments, errors
from marship.arguments import checked
from marship.errors import LoadError, MarshipError, SealError, StorageError, UsageError
from marship.packaging import loading
from marship.serving.formats import extent
from marship.serving.formats.media import media_type
from marship.serving.model import keysource
from marship.trust import archive, extract

STARTUP_S = 120.0
"""TorchServe's default for startupTimeout."""


@dataclass(frozen=True, slots=True)
class Response:
    """The model's response to the request.

    Attributes:
        status: The HTTP status.
        content_type: The body's content type.
        size_bytes: The body's size.
        body: The first megabyte of the body as text.
        ms: The median time in the worker, in milliseconds.
        log: The end of the worker's log where the status is 500 or more, which has the reason.

    Example:
        >>> marship.Response(200, "application/json", 6, "[[16]]", ms=0.2).status
        200
    """

    status: int
    content_type: str
    size_bytes: int
    body: str
    ms: float
    log: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of loading an archive.

    Attributes:
        name: The model's name.
        version: Its version.
        handler: The handler's file.
        load_s: Seconds from importing the handler until the golden cases were replayed.
        threads: Threads of one call.
        golden_cases: Number of golden cases that were replayed, all within the tolerance.
        golden_ms: The median time of a warm call with their inputs, in milliseconds.
        before_bytes: Resident memory before the handler was imported.
        loaded_bytes: Resident memory after the model was loaded.
        peak_bytes: Peak resident memory.
        response: The response to the request; None without one.
        golden_requests: Number of golden requests that were replayed, all as recorded.

    Example:
        >>> sorted(marship.Checked.__dataclass_fields__)[:3]
        ['before_bytes', 'golden_cases', 'golden_ms']
    """

    name: str
    version: str
    handler: str
    load_s: float
    threads: int
    golden_cases: int
    golden_ms: float
    before_bytes: int
    loaded_bytes: int
    peak_bytes: int
    response: Response | None = None
    golden_requests: int = 0


@checked
def check(
    path: str | Path, request: str | Path | None = None, *, content_type: str | None = None
) -> Checked:
    """Load an archive without a server, replay its golden cases, and run one request.

    Args:
        path: The `.mar` file. Its handler's code is run.
        request: A file that holds a request's body.
        content_type: The body's content type; None is guessed from the file name.

    Raises:
        UsageError: A file does not exist.
        PackageError: The archive cannot be read.
        LoadError: A worker could not serve the model; the message says why.
        SealError: The model is sealed and cannot be decrypted: MARSHIP_SEAL_KEY names the key.

    Example:
        >>> done = marship.check("model_store/tiny.mar", "request.json")
        >>> (done.name, done.golden_cases > 0, done.response.status)
        ('tiny', True, 200)
    """
    path, body = Path(path), None if request is None else Path(request)
    if body is not None and not body.is_file():
        raise UsageError(f"{body} must be a file with a request's body, got none there.")
    found = archive.read(path)
    more: dict[str, Any] = {}
    if body is not None:
        more = {"body": str(body.absolute()), "content_type": content_type or media_type(body)}
    return _result(found, measured(found, more))


def measured(found: archive.Archive, more: dict[str, Any]) -> dict[str, Any]:
    """What a process reports that loads an archive, in which the archive's own code runs.

    Args:
        found: The archive.
        more: What else it has to do: see `loading_process.main`.

    Raises:
        LoadError: A worker could not serve the model; the message says why.
        SealError: The model is sealed and cannot be decrypted.
        MarshipError: The error that the process reports.
    """
    seen = dict(os.environ)
    if found.sealed:
        seen[keysource.SOURCE_VARIABLE] = _seal_key(found.path)
    task: dict[str, Any] = {
        "handler": found.handler.partition(":")[0],
        "name": found.name,
        "version": found.version,
        "config": found.config,
        "limit_bytes": extent.SHIPPED_BYTES,
    }
    with tempfile.TemporaryDirectory(prefix="marship-check-") as folder:
        _unpack(found, Path(folder))
        limit_s = _limit_s(found.config.get("startupTimeout"))
        reported = loading.run(Path(folder), task | more, seen, limit_s)
    if isinstance(reported.get("code"), str) and isinstance(reported.get("message"), str):
        raise _error(reported["code"], reported["message"])
    return reported


def _result(found: archive.Archive, reported: dict[str, Any]) -> Checked:
    """The report as a value.

    Raises:
        LoadError: It has another form.
    """
    sample = reported.pop("response", None)
    try:
        response = None if sample is None else arguments.from_json(Response, sample)
        own = {"name": found.name, "version": found.version, "handler": found.handler}
        return arguments.from_json(Checked, {**reported, **own, "response": response})
    except UsageError as error:
        raise LoadError(
            f"{found.name} must load, got a report that its own code wrote: {error}"
        ) from error


def _unpack(found: archive.Archive, folder: Path) -> None:
    try:
        extract.unpack(found.path, found.plain, folder)
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()} must hold the extracted archive for a while, got: "
            f"{error.strerror or error}. Free some of it, or name another folder in TMPDIR."
        ) from error


def _limit_s(value: object) -> float:
    """The archive's startupTimeout, or TorchServe's."""
    if value is None:
        return STARTUP_S
    if not isinstance(value, int | float) or not value > 0:
        raise LoadError(
            "startupTimeout in model-config.yaml must be a number of seconds over 0, "
            f"got {value!r}. Package the model again."
        )
    return float(value)


def _seal_key(path: Path) -> str:
    """The source of the key, read once, so that its errors are reported here."""
    source = keysource.tried(None)
    if source is None:
        raise SealError(
            f"{path} must be checked with the key that its model is sealed with, got none. "
            f"Run: {keysource.SOURCE_VARIABLE}=file:PATH marship check {path}"
        )
    return source


def _error(code: str, message: str) -> MarshipError:
    """The error that the process reported."""
    return next((k for k in errors.kinds() if k.code == code), LoadError)(message)
