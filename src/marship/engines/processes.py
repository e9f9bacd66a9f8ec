"""A server's processes: Java, the leader of a process group, and the workers in that group."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # proc(5): changes at each boot
_WORKER_FILE = "model_service_worker.py"
_CLOCK_SLACK_S = 2.0
_KILLED_WITHIN_S = 10.0
_POLL_S = 0.05
_LEFT_FILES = 256


@dataclass(frozen=True, slots=True)
class Group:
    """The process group of a server's Java.

    Attributes:
        pid: Java's pid, and the group's id.
        created: Java's `start_time`: pids are reused.
        boot: The machine's `boot_id`.
    """

    pid: int
    created: float
    boot: str

    def is_alive(self) -> bool:
        """Whether Java is running."""
        leader = self._leader()
        with contextlib.suppress(psutil.NoSuchProcess):
            return leader is not None and leader.status() != psutil.STATUS_ZOMBIE
        return False

    def members(self) -> list[psutil.Process]:
        """All processes of the server.

        The group's id is not reused while the group has members, so orphaned workers of a killed
        server are found, too. Without Java the id may have been reused, so then only processes
        that look like workers count.
        """
        is_ours = self._leader() is not None
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getpgid(process.pid) == self.pid and (is_ours or _is_worker(process)):
                    found.append(process)
        return found

    def terminate(self) -> None:
        """Send SIGTERM to Java, which ends its workers."""
        leader = self._leader()
        if leader is not None:
            _send(leader, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to Java and to every worker."""
        for process in self.members():
            _send(process, signal.SIGKILL)

    def end(self, grace_s: float) -> None:
        """Send SIGTERM, wait, and kill what is still running after `grace_s`."""
        known = self.members()  # later, without Java, only workers are recognized
        self.terminate()
        left = _wait(known, grace_s)
        while left := {*left, *filter(_runs, self.members())}:
            for process in left:
                _send(process, signal.SIGKILL)
            left = _wait(left, _KILLED_WITHIN_S)

    def _leader(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            is_then = abs(start_time(self.pid) - self.created) < _CLOCK_SLACK_S
            if is_then and boot_id() == self.boot:
                return psutil.Process(self.pid)
        return None


def raise_open_files() -> int:
    """Let this process open as many files as it may; how many of them clients may have."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(_LEFT_FILES, hard - _LEFT_FILES)


def start_time(pid: int) -> float:
    """Start time of a process in seconds since boot, which is unaffected by clock changes.

    Raises:
        psutil.NoSuchProcess: The process does not exist.
    """
    return psutil.Process(pid).create_time() - psutil.boot_time()


def boot_id() -> str:
    """The machine's boot id; Linux only."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def _is_worker(process: psutil.Process) -> bool:
    return any(word.endswith(_WORKER_FILE) for word in process.cmdline())


def _runs(process: psutil.Process) -> bool:
    """Whether it is running, and not a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _wait(running: Iterable[psutil.Process], timeout_s: float) -> set[psutil.Process]:
    """Wait until all have exited; return those that have not. Zombies count as exited."""
    left, end = set(running), time.monotonic() + timeout_s
    while left and time.monotonic() < end:
        _, alive = psutil.wait_procs(left, timeout=_POLL_S)
        left = set(filter(_runs, alive))
    return left


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
