"""Runs wrk, parses its output, and suspends the servers that are not being measured."""

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from marship.errors import DataError, UsageError

SCRIPT = Path(__file__).parent / "wrk.lua"
TIMEOUT_S = 10
_MARK = "figures "


@dataclass(frozen=True, slots=True)
class Request:
    """The request that every client repeats.

    Attributes:
        url: Where it goes.
        headers: Content-Type and, where the server needs one, the token.
        body: A file that holds its bytes; None sends a GET.
        others: Further bodies; clients cycle through all.
    """

    url: str
    headers: Mapping[str, str]
    body: Path | None = None
    others: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Figures:
    """Results of one measurement; times in microseconds."""

    rps: float
    p50_us: float
    p99_us: float
    errors: int


def require_wrk() -> str:
    """The path of wrk.

    Raises:
        UsageError: It is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise UsageError("wrk must be on the PATH, got none. Run: apt-get install wrk")
    return found


def parse(text: str) -> Figures:
    """Read the line that wrk.lua, or the loop without a server, prints in the end.

    Raises:
        DataError: There is no such line.
    """
    lines = [line for line in text.splitlines() if line.startswith(_MARK)]
    if len(lines) != 1:
        raise DataError(f"wrk must print its figures once, got: {text[-500:]!r}.")
    raw: dict[str, Any] = json.loads(lines[0].removeprefix(_MARK))
    return Figures(
        rps=raw["requests"] / raw["duration_us"] * 1e6,
        p50_us=raw["p50_us"],
        p99_us=raw["p99_us"],
        errors=sum(raw["errors"].values()),
    )


def measure(request: Request, clients: int, seconds: int) -> Figures:
    """Repeat the request on `clients` connections, each waiting for its response."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as headers:
        headers.writelines(f"{name}: {value}\n" for name, value in request.headers.items())
        headers.flush()
        done = subprocess.run(
            _command(request, clients, seconds, headers.name),
            capture_output=True,
            text=True,
            check=False,
        )
    return parse(done.stdout + done.stderr)


def _command(request: Request, clients: int, seconds: int, headers: str) -> list[str]:
    return [
        require_wrk(),
        "--threads=1",
        f"--connections={clients}",
        f"--duration={seconds}s",
        f"--timeout={TIMEOUT_S}s",
        f"--script={SCRIPT}",
        request.url,
        "--",
        "GET" if request.body is None else "POST",
        ",".join(map(str, (request.body or "-", *request.others))),
        headers,
    ]


def freeze(*pids: int) -> None:
    """Suspend a server's processes, so that one that polls while idle takes no processor time."""
    for process in tree(*pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()


def thaw(*pids: int) -> None:
    """Resume a server's processes, children first."""
    for process in reversed(tree(*pids)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


@contextlib.contextmanager
def awake(*pids: int) -> Iterator[None]:
    """Resume a suspended server while the block runs."""
    thaw(*pids)
    try:
        yield
    finally:
        freeze(*pids)


def end(*pids: int, grace_s: float = 10) -> None:
    """End a server and all processes that it started."""
    processes = tree(*pids)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=grace_s)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def tree(*pids: int) -> list[psutil.Process]:
    """Processes and all their descendants; none where they have ended."""
    found: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
    return found
