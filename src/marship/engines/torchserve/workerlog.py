"""Why a worker died: read from the logs of a server whose home is at hand."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marship.engines.torchserve.home import Home

_LINE = re.compile(r"\S+ \w+ +(W-(\d+)-(.+?)(?:-std(?:out|err))?) - (.*)")
_OURS = re.compile(r"marship\.[\w.]+: (.*)")
_TRACEBACK = "Traceback (most recent call last):"
_DEATHS = ("Backend worker process died.", "Backend worker error", "Load model failed")
_MASKS = (  # what TorchServe raises in place of the first error
    "No module named 'ts.torch_handler.",
    "500 - Unknown exception",
    "507 - System out of memory",
)
SILENT = "it ended without a message, as a process does that is killed or out of memory"
_KEPT_LINES = 15


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log: which stream of which worker wrote what."""

    stream: str
    worker: str
    text: str


class WorkerLog:
    """What the workers of one server log from now on."""

    def __init__(self, home: Home) -> None:
        self._offsets = {path: _size(path) for path in (home.worker_log, home.server_log)}

    def lines(self, model: str, version: str) -> list[Line]:
        """The lines that this model's workers, and the threads that watch them, wrote."""
        wanted = f"{model}_{version}"
        return [
            Line(match[1], match[2], match[4])
            for path, offset in self._offsets.items()
            for text in _read_from(path, offset).splitlines()
            if (match := _LINE.fullmatch(text)) and match[3] == wanted
        ]


def dead_workers(lines: list[Line]) -> set[str]:
    """The ids of the workers that died."""
    return {line.worker for line in lines if line.text.startswith(_DEATHS)}


def deaths(lines: list[Line]) -> int:
    """How often workers died: one death may be logged in several ways, each of them once."""
    kinds = [kind for line in lines for kind in _DEATHS if line.text.startswith(kind)]
    return max(Counter(kinds).values(), default=0)


def cause(lines: list[Line]) -> str:
    """The message of the error that a worker died of.

    That is the last exception that is not one of TorchServe's own stand-ins; without any it
    is what the interpreter said last.
    """
    raised = list(_raised(lines))
    telling = [text for text in raised if not any(mask in text for mask in _MASKS)]
    fatal = [line.text for line in lines if line.text.startswith("Fatal Python error")]
    found = (telling[-1:] or fatal[:1] or raised[-1:] or [SILENT])[0]
    ours = _OURS.fullmatch(found)
    return ours[1] if ours else found


def tail(lines: list[Line]) -> list[str]:
    """The last lines, as a person reads them."""
    return [line.text for line in lines][-_KEPT_LINES:]


def _raised(lines: list[Line]) -> Iterator[str]:
    """The line that ends each traceback; workers write at the same time, so stream by stream."""
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
        if _size(path) >= offset:  # else the log was rolled over since
            file.seek(offset)
        return file.read().decode("utf-8", "replace")
