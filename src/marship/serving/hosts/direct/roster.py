"""The workers of an acceptor, in a file for the next one: a worker that hangs says no hello."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from marship.serving.hosts.direct.slots import has_ended

logger = logging.getLogger(__name__)

_CALLS = 2


@dataclass(slots=True)
class Missing:
    """A worker that said hello to the acceptor before, and not yet to this one.

    Attributes:
        process: A descriptor of its process.
        began: When that began.
        timeout_s: The longest time of a request; None: its silence is not watched.
        model: Its model.
        version: Its model's version.
        since: When it was first missed, by the monotonic clock.
    """

    process: int
    began: str
    timeout_s: float | None
    model: str
    version: str
    since: float


class Roster:
    """The workers whose silence is watched.

    Args:
        file: Where they are kept; None keeps them nowhere.
        now: By the monotonic clock.
    """

    def __init__(self, file: Path | None, now: float) -> None:
        self._file = file
        self._here: dict[int, tuple[str, float | None, str, str]] = {}  # as in the file; by its pid
        self._missing = dict(self._read(now))

    def _read(self, now: float) -> Iterator[tuple[int, Missing]]:
        if self._file is None or not self._file.is_file():
            return
        try:
            rows = orjson.loads(self._file.read_bytes())
            right = [row for row in rows if _is_row(row)]
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s must list the workers, got: %s", self._file, error)
            return
        if len(right) < len(rows):
            logger.warning(
                "%s must list the workers, got %d rows of another form, which are ignored.",
                self._file, len(rows) - len(right),
            )  # fmt: skip
        for pid, began, timeout_s, model, version in right:
            with suppress(OSError, OverflowError):  # it has ended, or never was
                process = os.pidfd_open(pid)
                if _began(pid) == began:  # pids are reused
                    yield pid, Missing(process, began, timeout_s, model, version, now)
                else:
                    os.close(process)

    def enter(self, pid: int, timeout_s: float | None, model: str, version: str) -> None:
        """A worker said hello."""
        self._found(pid)
        with suppress(OSError):  # it has ended already
            self._here[pid] = (_began(pid), timeout_s, model, version)
            self._write()

    def missing(self, model: str, version: str | None) -> list[int]:
        """The pids of workers that live and have not said hello yet.

        Args:
            model: Theirs.
            version: Theirs; None is any.
        """
        return [
            pid
            for pid, one in self._missing.items()
            if one.model == model and version in (None, one.version)
            if not has_ended(one.process)
        ]

    def leave(self, pid: int) -> None:
        """Its connection to the acceptor has ended."""
        if self._here.pop(pid, None) is not None:
            self._write()

    def _found(self, pid: int) -> None:
        if (missing := self._missing.pop(pid, None)) is not None:
            os.close(missing.process)

    def _write(self) -> None:
        if self._file is None:
            return
        rows = [(pid, *facts) for pid, facts in self._here.items()]
        rows += [
            (pid, one.began, one.timeout_s, one.model, one.version)
            for pid, one in self._missing.items()
        ]
        fresh = self._file.with_suffix(".new")
        try:
            fresh.write_bytes(orjson.dumps(rows))
            fresh.rename(self._file)
        except OSError as error:
            logger.warning("%s must list the workers, got: %s", self._file, error)

    def overdue(self, now: float, silent_s: float, away_s: float) -> Iterator[tuple[int, int]]:
        """The pid and descriptor of each worker that was missing for too long; each once.

        Its loop may get no turn in the call that ran, nor in the next one: both have their time.

        Args:
            now: By the monotonic clock.
            silent_s: How long one may be missing beyond the time of two requests.
            away_s: How long nobody looked, which does not count.
        """
        for pid, missing in list(self._missing.items()):
            missing.since += away_s
            is_gone = has_ended(missing.process)
            limit_s = (
                math.inf if missing.timeout_s is None else _CALLS * missing.timeout_s + silent_s
            )
            is_late = now - missing.since > limit_s
            if is_late and not is_gone:
                yield pid, missing.process
            if is_late or is_gone:
                self._found(pid)

    def close(self) -> None:
        """Forget those that are missing; the file stays as it is for the next acceptor."""
        self._file = None
        for pid in list(self._missing):
            self._found(pid)


def _began(pid: int) -> str:
    """When a process began (proc(5), stat, field 22).

    Raises:
        OSError: It has ended.
    """
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]


def _is_row(row: object) -> bool:
    """Whether it has a pid, when that began, a timeout or None, a model and a version."""
    kinds = (int, str, int | float | None, str, str)
    return (
        isinstance(row, list)
        and len(row) == len(kinds)
        and all(map(isinstance, row, kinds))
        and not any(isinstance(one, bool) for one in row)
    )
