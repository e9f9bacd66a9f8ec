"""A candidate on a server of its own: on loopback, at free ports, in a home that is removed.

At the direct address it is a process of `marship host` for each candidate, which has the acceptor
and the workers that TorchServe has beside it; else TorchServe itself. Only what was started here is
ended, with all its descendants.
"""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from marship.client.clients import Client
from marship.errors import LoadError, MarshipError, ServerError, StorageError
from marship.operate.tune.load import Endpoint
from marship.serving.model import keysource
from marship.trust import archive as archives

_POLL_S, _GRACE_S, _LOOK_S = 0.05, 10.0, 10.0
_LOG_BYTES = 2000


@dataclass(frozen=True, slots=True)
class ServedCandidate:
    """A model that is served.

    Attributes:
        endpoint: Where it is asked.
        process: The server; its descendants are the workers.
    """

    endpoint: Endpoint
    process: psutil.Process

    def memory_mb(self) -> float:
        """Of all its processes; a page that several share counts once (PSS, proc(5))."""
        total = 0
        for one in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += one.memory_full_info().pss
        return total / 1e6


@contextmanager
def direct(archive: Path, folder: Path, startup_s: float) -> Iterator[ServedCandidate]:
    """Serve an archive without an engine, until the block ends.

    Args:
        archive: The archive.
        folder: An empty one, for all that the server writes.
        startup_s: How long its workers may take to load.

    Raises:
        LoadError: It does not serve; the message says why.
    """
    token = secrets.token_hex(16)
    (folder / "token").write_text(token)
    words = ["marship.operate.tune.hosted", archive.absolute(), folder / "home", folder / "token"]
    with _started(words, folder) as process:
        url = _first_line(process, folder)["url"]
        endpoint = _endpoint(url, archives.read(archive).name, token)
        _await_ready(endpoint, process, folder, startup_s)
        yield ServedCandidate(endpoint, psutil.Process(process.pid))


@contextmanager
def torchserve(archive: Path, folder: Path, startup_s: float) -> Iterator[ServedCandidate]:
    """Serve an archive through TorchServe's frontend, until the block ends.

    Args:
        archive: The archive.
        folder: An empty one, for the server's home and its model store.
        startup_s: How long its workers may take to load.

    Raises:
        MarshipError: It does not serve; the message says why.
    """
    home, store = folder / "home", folder / "store"
    store.mkdir()
    shutil.copyfile(archive, store / archive.name)
    words = ["marship", "serve", "--home", home, "--model-store", store]
    with _started([*words, "--free-ports", "--no-direct", "--json"], folder) as process:
        record = _whole(process, folder)
        with Client(home, timeout_s=startup_s) as client:
            found = client.register(archive.name, timeout_s=startup_s)
        token = json.loads(Path(record["key_file"]).read_bytes())["inference"]["key"]
        endpoint = _endpoint(record["inference_url"], found.name, token)
        yield ServedCandidate(endpoint, psutil.Process(process.pid))


@contextmanager
def _started(words: list[Any], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A module as a process, ended with all its descendants when the block ends."""
    source = keysource.chosen(None)  # absolute: the process runs in another folder
    key = {} if source is None else {keysource.SOURCE_VARIABLE: source}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **key},
            cwd=folder,  # else TorchServe takes the config.properties of the folder here
            start_new_session=True,  # Ctrl-C is ours, and ends it in order
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    own: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        own = [*psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in own:  # those that outlived it
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _first_line(process: "subprocess.Popen[bytes]", folder: Path) -> dict[str, str]:
    """What the host says first.

    Raises:
        LoadError: It says why it cannot serve, or ended.
        StorageError: The disk is full.
    """
    assert process.stdout is not None  # noqa: S101  a pipe
    line = process.stdout.readline()
    found: dict[str, str] = json.loads(line) if line else {}
    if "url" not in found:
        raise _fault(found) or LoadError(_log(folder))
    return found


def _whole(process: "subprocess.Popen[bytes]", folder: Path) -> dict[str, Any]:
    """The JSON object that `marship serve --json` prints when it responds."""
    assert process.stdout is not None  # noqa: S101  a pipe
    text = b""
    for line in process.stdout:
        text += line
        if line == b"}\n":
            found: dict[str, Any] = json.loads(text)
            return found
    raise ServerError(f"TorchServe must start, got: {_log(folder)}")


def _log(folder: Path) -> str:
    text = (folder / "log").read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip()
    return " ".join(text.split()) or "it ended without a word."


def _endpoint(url: str, model: str, token: str) -> Endpoint:
    place = urlsplit(url)
    return Endpoint(place.hostname or "", place.port or 0, f"/predictions/{model}", token)


def _await_ready(
    endpoint: Endpoint, process: "subprocess.Popen[bytes]", folder: Path, startup_s: float
) -> None:
    """Return once golden cases are replayed and requests are taken.

    Raises:
        LoadError: The server ended, or is not ready in time.
    """
    until = time.monotonic() + startup_s
    while not _is_ready(endpoint):
        if process.poll() is not None:
            raise _last_fault(process) or LoadError(_log(folder))
        if time.monotonic() > until:
            raise LoadError(f"its workers must be ready within {startup_s:g} s, got none in time.")
        time.sleep(_POLL_S)


def _last_fault(process: "subprocess.Popen[bytes]") -> MarshipError | None:
    assert process.stdout is not None  # noqa: S101  a pipe
    line = process.stdout.readline()
    return _fault(json.loads(line)) if line else None


def _fault(said: dict[str, str]) -> MarshipError | None:
    """Why the host cannot serve; None if it did not say."""
    if not said.get("fault"):
        return None
    kind = StorageError if said["code"] == StorageError.code else LoadError
    return kind(said["fault"])


def _is_ready(endpoint: Endpoint) -> bool:
    line = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_LOOK_S)
    try:
        line.request("GET", "/v2/health/ready", headers=endpoint.headers)
        return line.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        line.close()
