"""The cause of a worker's crash, from the logs of a local server."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marship.engines.home import Home

_LINE = re.compile(r"\S+ \w+ +(W-(\d+)-(.+?)(?:-std(?:out|err))?) - (.*)")
_OURS = re.compile(r"marship\.[\w.]+: (.*)")
_TRACEBACK = "Traceback (most recent call last):"
_DEATHS = ("Backend worker process died.", "Backend worker error", "Load model failed")
_STAND_INS = (  # errors that TorchServe raises in place of the original one
    "No module named 'ts.torch_handler.",
    "500 - Unknown exception",
    "507 - System out of memory",
)
SILENT = "it ended without a message, as a process does that is killed or out of memory"
_KEPT_LINES = 15


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the log: the worker, its stream, and the text."""

    stream: str
    worker: str
    text: str


class WorkerLog:
    """The workers' log of one server, from now on."""

    def __init__(self, home: Home) -> None:
        self._offsets = {path: _size(path) for path in (home.worker_log, home.server_log)}

    def lines(self, model: str, version: str) -> list[LogLine]:
        """The lines of a model's workers, and of the threads that supervise them."""
        wanted = f"{model}_{version}"
        return [
            LogLine(match[1], match[2], match[4])
            for path, offset in self._offsets.items()
            for text in _read_from(path, offset).splitlines()
            if (match := _LINE.fullmatch(text)) and match[3] == wanted
        ]


def dead_workers(lines: list[LogLine]) -> set[str]:
    """The ids of the workers that crashed."""
    return {line.worker for line in lines if line.text.startswith(_DEATHS)}


def deaths(lines: list[LogLine]) -> int:
    """The number of crashes: one may be logged in several ways, each of them once."""
    kinds = [kind for line in lines for kind in _DEATHS if line.text.startswith(kind)]
    return max(Counter(kinds).values(), default=0)


def cause(lines: list[LogLine]) -> str:
    """The message of the error that crashed a worker.

    That is the last exception that TorchServe did not substitute; without any it is the last
    message of the interpreter.
    """
    raised = list(_raised(lines))
    informative = [text for text in raised if not any(mask in text for mask in _STAND_INS)]
    fatal = [line.text for line in lines if line.text.startswith("Fatal Python error")]
    fatal.sort(key=lambda text: text.rstrip().endswith("error:"))  # cut off where the worker ended
    found = (informative[-1:] or fatal[:1] or raised[-1:] or [SILENT])[0]
    ours = _OURS.fullmatch(found)
    return ours[1] if ours else found


def tail(lines: list[LogLine]) -> list[str]:
    """The last lines, formatted for people."""
    return [line.text for line in lines][-_KEPT_LINES:]


def _raised(lines: list[LogLine]) -> Iterator[str]:
    """The last line of each traceback, by stream, since workers write concurrently."""
    inside: set[str] = set()
    for line in lines:
        if line.text == _TRACEBACK:
            inside.add(line.stream)
        elif line.stream in inside and not line.text.startswith(" "):
            inside.discard(line.stream)
            yield line.text


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_from(path: Path, offset: int) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        if _size(path) >= offset:  # otherwise the log was rotated since
            file.seek(offset)
        return file.read().decode("utf-8", "replace")
