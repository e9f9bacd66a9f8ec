"""`marship check`: load an archive without a server, before registering it.

The archive is extracted into a private folder and loaded in a separate process as in a worker: with
the archive's own handler and copy of marship. So its code is run: verify the signature of an
untrusted archive first.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from marship import arguments, errors
from marship.arguments import checked
from marship.errors import LoadError, MarshipError, SealError, StorageError, UsageError
from marship.predict.sources import media_type
from marship.serving.formats import extent
from marship.serving.model import keysource
from marship.trust import archive, extract

SCRIPT = Path(__file__).with_name("check_process.py")
STARTUP_S = 120.0
"""TorchServe's default for startupTimeout."""

_LOG_BYTES = 4096
_STEPS = 2  # loading, and the rest


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
    seen = dict(os.environ)
    if found.sealed:
        seen[keysource.SOURCE_VARIABLE] = _seal_key(path)
    task: dict[str, Any] = {
        "handler": found.handler.partition(":")[0],
        "name": found.name,
        "version": found.version,
        "config": found.config,
        "limit_bytes": extent.SHIPPED_BYTES,
    }
    if body is not None:
        task |= {"body": str(body.absolute()), "content_type": content_type or media_type(body)}
    with tempfile.TemporaryDirectory(prefix="marship-check-") as folder:
        _unpack(found, Path(folder))
        measured = _run(Path(folder), task, seen, _limit_s(found.config.get("startupTimeout")))
    return _result(found, measured)


def _result(found: archive.Archive, measured: dict[str, Any]) -> Checked:
    """What the process reports, in which the archive's own code ran.

    Raises:
        MarshipError: The error that it reports.
        LoadError: The report has another form.
    """
    if isinstance(measured.get("code"), str) and isinstance(measured.get("message"), str):
        raise _error(measured["code"], measured["message"])
    sample = measured.pop("response", None)
    try:
        response = None if sample is None else arguments.from_json(Response, sample)
        own = {"name": found.name, "version": found.version, "handler": found.handler}
        return arguments.from_json(Checked, {**measured, **own, "response": response})
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


def _run(
    folder: Path, task: dict[str, Any], seen: dict[str, str], limit_s: float
) -> dict[str, Any]:
    """The process's result, after it and the processes of its group have exited."""
    words = [sys.executable, "-P", str(SCRIPT), str(folder)]
    with (
        tempfile.TemporaryFile() as task_file,
        tempfile.TemporaryFile() as log,
        tempfile.TemporaryFile() as result,
    ):
        task_file.write(json.dumps(task).encode())
        task_file.seek(0)
        code = _code(
            words, limit_s, stdin=task_file, stdout=result, stderr=log, cwd=folder, env=seen
        )
        if code is None:
            action = " and respond" if "body" in task else ""
            raise LoadError(
                f"{task['name']} must load{action} within its startupTimeout of {limit_s:g} s, but "
                "did not finish. Package it with a longer --startup-timeout-s."
            )
        result.seek(0)
        steps = _steps(result)
        found = {name: value for step in steps for name, value in step.items()}
        if code == 0 and ("code" in found or len(steps) == _STEPS):
            response = found.get("response")
            if isinstance(response, dict) and response.get("status") in range(500, 600):
                response["log"] = _end_of(log)
            return found
        goal = "respond to the request" if steps and "body" in task else "load"
        raise LoadError(f"{task['name']} must {goal}, but its process ended: {_reason(code, log)}.")


def _steps(result: IO[bytes]) -> list[dict[str, Any]]:
    """What the process wrote; none where a handler overwrote it."""
    try:
        return [dict(json.loads(line)) for line in result]
    except (ValueError, TypeError):
        return []


def _code(words: list[str], limit_s: float, **streams: Any) -> int | None:  # noqa: ANN401  Popen's
    """A process's exit code; None on timeout."""
    process = subprocess.Popen(words, start_new_session=True, **streams)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):  # a handler may have started others, which keep running
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(code: int, log: IO[bytes]) -> str:
    if code < 0:
        known = -code in set(signal.Signals)
        return f"a crash ({signal.Signals(-code).name if known else f'signal {-code}'})"
    lines = _end_of(log).splitlines()
    return lines[-1].rstrip(".") if code and lines else f"exit code {code}"


def _end_of(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
    return log.read().decode(errors="replace").strip()


def _error(code: str, message: str) -> MarshipError:
    """The error that the process reported."""
    return next((k for k in errors.kinds() if k.code == code), LoadError)(message)
