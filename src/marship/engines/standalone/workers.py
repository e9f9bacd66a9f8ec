"""The worker processes of a host: started, read from, and started again when they end."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marship.engines.standalone.figures import ModelFigures

logger = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_name("worker_script.py")
_READ_BYTES, _MOST_LINE = 1 << 16, 1 << 20
_FIRST_S, _LONGEST_S, _STEADY_S = 0.2, 10.0, 60.0
"""Pause before a worker is started again, doubled each time; the longest one; how long one must
have served for the first one again."""
_KEPT_OUT = (
    "PYTHONPATH",  # a worker runs the archive's own copy of marship
    "PYTHONHOME",
    "MARSHIP_INFERENCE_TOKEN",  # and a model's code, which needs no tokens
    "MARSHIP_MANAGEMENT_TOKEN",
    "MARSHIP_KEY_PASSPHRASE",
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker cannot serve.

    Attributes:
        code: The error's stable code.
        message: What was wrong.
    """

    code: str
    message: str


class WorkerProcess:
    """A place for a worker, and the process that has it now.

    Args:
        figures: Of its model.
        temporary: Where the process may write.
        variables: Further ones of its environment.
        on_failure: Called when the process ends or cannot load its model before any has served.
    """

    def __init__(
        self,
        figures: ModelFigures,
        temporary: Path,
        variables: Mapping[str, str],
        on_failure: Callable[[Failure], None],
    ) -> None:
        self._figures, self._temporary, self._on_failure = figures, temporary, on_failure
        self._environment = {**_environment(temporary), **variables}
        self._has_served = self._is_ending = False
        self._failure: Failure | None = None
        self._pause_s, self._ready_at = _FIRST_S, 0.0
        self._unread = b""
        self._launch()

    def _launch(self) -> None:
        """Start a process, which imports what it needs and waits for its task."""
        self._unread, self._failure, self._ready_at = b"", None, 0.0
        self._figures.starts += 1
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._temporary,
            env=self._environment,
            umask=0o077,
            start_new_session=True,  # Ctrl-C is the host's
        )

    def begin(self, loop: asyncio.AbstractEventLoop, task: Mapping[str, Any]) -> None:
        """Give the process its task, and read its reports from now on."""
        self._loop, self._task = loop, task
        assert self.process.stdin is not None  # noqa: S101  a pipe
        assert self.process.stdout is not None  # noqa: S101  a pipe
        number = self.process.stdout.fileno()
        os.set_blocking(number, False)
        loop.add_reader(number, self._read, number)
        try:
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it has ended: its reports end, too
            return

    def _read(self, number: int) -> None:
        try:
            data = os.read(number, _READ_BYTES)
        except BlockingIOError:
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        try:
            for line in lines:
                self._take(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("worker %d must report figures, got: %r", self.process.pid, error)
        if not data or len(self._unread) > _MOST_LINE:
            self._loop.remove_reader(number)
            self._end()

    def _take(self, report: Mapping[str, Any]) -> None:
        if "message" in report:
            self._failure = Failure(str(report["code"]), str(report["message"]))
        elif "golden_cases" in report:
            self._figures.ready += 1
            self._has_served, self._ready_at = True, time.monotonic()
            logger.info(
                "worker %d of %s %s is ready: %d golden cases and %d golden requests replayed",
                self.process.pid, self._figures.name, self._figures.version,
                report["golden_cases"], report["golden_requests"],
            )  # fmt: skip
        else:
            self._figures.add(report)

    def _end(self) -> None:
        """The process has ended, or must."""
        code = self._kill()
        if self._ready_at:
            self._figures.ready -= 1
        if self._is_ending:
            return
        failure = self._failure or Failure("load", _ended(self._figures, code))
        if not self._has_served:
            self._on_failure(failure)
            return
        if self._ready_at and time.monotonic() - self._ready_at > _STEADY_S:
            self._pause_s = _FIRST_S
        logger.error("%s It is started again in %g s.", failure.message, self._pause_s)
        self._loop.call_later(self._pause_s, self._restart)
        self._pause_s = min(_LONGEST_S, 2 * self._pause_s)

    def _restart(self) -> None:
        if self._is_ending:
            return
        try:
            self._launch()
        except OSError as error:  # no process or memory is left for now
            logger.warning("a worker must be started, got: %s. It is tried again.", error.strerror)
            self._loop.call_later(self._pause_s, self._restart)
        else:
            self.begin(self._loop, self._task)

    def leave(self) -> None:
        """Start no other process when this one ends."""
        self._is_ending = True

    def stop(self) -> None:
        """End the process."""
        self._is_ending = True
        self._kill()

    def _kill(self) -> int:
        """End the process and what a handler has started; returns its exit code."""
        if self.process.returncode is None:  # else its group may be another's by now
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None  # noqa: S101  both are pipes
            try:
                pipe.close()
            except BrokenPipeError:  # the task, which it did not read
                continue
        return code


def _environment(temporary: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _KEPT_OUT}
    return kept | {
        "TMPDIR": str(temporary),
        "PYTHONFAULTHANDLER": "1",  # a worker that crashes in native code prints where
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "PYTHONUNBUFFERED": "1",
        "ORT_DISABLE_TELEMETRY": os.environ.get("ORT_DISABLE_TELEMETRY", "1"),
    }


def _ended(figures: ModelFigures, code: int) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    memory = " The kernel ends it where memory is short: raise the limit." * (
        code == -signal.SIGKILL
    )
    return f"a worker of {figures.name} {figures.version} must go on, got {how}.{memory}"
