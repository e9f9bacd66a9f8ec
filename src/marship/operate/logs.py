"""A server's logs as one: in the order of time, of one model if wanted, without what says nothing.

Left out are what Java and each worker print as they start, and the frames of Java's stacks: what
went wrong stands in the line before them.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from operator import attrgetter
from pathlib import Path

_POLL_S = 0.2
_BEGINS = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d,\d{3}) ")
_THREAD = re.compile(r"\S+ \w+ +W-\d+-(.+)_[^_]+?(?:-std(?:out|err))? - (.*)", re.DOTALL)
_WORKER = re.compile(r"\S+ \S+ worker \d+ of (\S+) ")
"""What the acceptor says of one."""
_FRAME = re.compile(r"\s+at |\s*\.\.\. \d+ (?:more|common frames)")
_STARTED = "Model server started."
_NOISE = (
    "s_name_part0=", "Listening on ", "Successfully loaded /", "[PID]", "Torch worker started.",
    "Python runtime: ", "Connection accepted: ", "model_name: ", "Frontend disconnected.",
)  # fmt: skip
_MOST_BYTES = 1 << 22
"""Of each file, the last that are looked through."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What was logged at once.

    Attributes:
        at: When, as text that sorts; that of the entry before where none stands in it.
        text: The lines.
    """

    at: str
    text: str

    @property
    def is_noise(self) -> bool:
        """Whether it says only that a worker starts or ends."""
        match = _THREAD.fullmatch(self.text)
        return match is not None and match[2].startswith(_NOISE)

    def is_of(self, model: str) -> bool:
        """Whether it is about a model."""
        if match := _THREAD.fullmatch(self.text):
            return match[1] == model
        if match := _WORKER.match(self.text):
            return match[1] == model
        # a dot ends a sentence, or goes on with another name
        whole = rf"(?<![\w.-]){re.escape(model)}(?![\w-]|\.\w)"
        return re.search(whole, self.text) is not None


class LogFile:
    """One file, read from where the last look ended.

    Args:
        path: The file; it may be rotated meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._inode = path, 0, 0
        self._unread, self._at = b"", ""

    def entries(self) -> list[LogEntry]:
        """What was written since the last call."""
        try:
            with self._path.open("rb") as file:
                size, inode = file.seek(0, 2), self._path.stat().st_ino
                if inode != self._inode or size < self._offset:  # it was rotated
                    self._offset, self._unread = max(0, size - _MOST_BYTES), b""
                self._inode = inode
                file.seek(self._offset)
                data = self._unread + file.read(size - self._offset)
                self._offset = size
        except OSError:
            return []
        *lines, self._unread = data.split(b"\n")
        return list(self._joined(line.decode("utf-8", "replace") for line in lines))

    def _joined(self, lines: Iterable[str]) -> Iterator[LogEntry]:
        """Lines that begin with a time, each with those after it that do not."""
        held: list[str] = []
        for line in lines:
            if match := _BEGINS.match(line):
                if held:
                    yield LogEntry(self._at, "\n".join(held))
                self._at, held = f"{match[1]} {match[2]}", [line]
            elif not _FRAME.match(line):
                held.append(line)
        if held:
            yield LogEntry(self._at, "\n".join(held))


class Logs:
    """The logs of a server.

    Args:
        files: Its files; Java's own output counts only while the server has not started.
        model: The model that entries must be about; None is all.
    """

    def __init__(self, files: Sequence[Path], model: str | None = None) -> None:
        self._files = [LogFile(path) for path in files if not _is_start_up(path)]
        self._model = model

    def new(self) -> list[LogEntry]:
        """Entries since the last call, in the order of time."""
        found = [
            [one for one in file.entries() if not one.is_noise and self._is_wanted(one)]
            for file in self._files
        ]
        return list(merge(*found, key=attrgetter("at")))

    def _is_wanted(self, entry: LogEntry) -> bool:
        return self._model is None or entry.is_of(self._model)

    def follow(self) -> Iterator[LogEntry]:
        """Entries as they are written, without end."""
        while True:
            yield from self.new()
            time.sleep(_POLL_S)


def _is_start_up(path: Path) -> bool:
    """Whether a file is what Java printed before the server had started."""
    return path.name == "console.log" and _STARTED in path.read_text(errors="replace")
