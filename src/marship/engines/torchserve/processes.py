"""A server's processes: Java, which leads a process group, and the workers that stay in it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # proc(5): another one after each boot
_WORKER_FILE = "model_service_worker.py"
_CLOCK_SLACK_S = 2.0
_KILLED_WITHIN_S = 10.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Group:
    """The process group that a server's Java leads.

    Attributes:
        pid: Java's number, and the group's.
        created: When Java began, as `began` tells it: numbers are used again.
        boot: Of which run of the machine that is, as `boot_id` tells it.
    """

    pid: int
    created: float
    boot: str

    def is_alive(self) -> bool:
        """Whether Java still runs."""
        leader = self._leader()
        with contextlib.suppress(psutil.NoSuchProcess):
            return leader is not None and leader.status() != psutil.STATUS_ZOMBIE
        return False

    def members(self) -> list[psutil.Process]:
        """Every process of the server.

        The number is not given away while the group has members, so workers whose server was
        killed are found too; since it may have been when there is no Java any more, they must
        look like workers then.
        """
        is_ours = self._leader() is not None
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getpgid(process.pid) == self.pid and (is_ours or _is_worker(process)):
                    found.append(process)
        return found

    def ask_to_end(self) -> None:
        """Send SIGTERM to Java, which ends its workers."""
        leader = self._leader()
        if leader is not None:
            _send(leader, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to Java and to every worker."""
        for process in self.members():
            _send(process, signal.SIGKILL)

    def end(self, grace_s: float) -> None:
        """Ask for the end, wait for it, and kill what still runs after `grace_s`."""
        known = self.members()  # without Java, later, only workers can be told
        self.ask_to_end()
        left = _wait(known, grace_s)
        while left := {*left, *filter(_runs, self.members())}:
            for process in left:
                _send(process, signal.SIGKILL)
            left = _wait(left, _KILLED_WITHIN_S)

    def _leader(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            is_then = abs(began(self.pid) - self.created) < _CLOCK_SLACK_S
            if is_then and boot_id() == self.boot:
                return psutil.Process(self.pid)
        return None


def began(pid: int) -> float:
    """When a process began, in seconds since the machine did: the clock may be set meanwhile.

    Raises:
        psutil.NoSuchProcess: There is none.
    """
    return psutil.Process(pid).create_time() - psutil.boot_time()


def boot_id() -> str:
    """Which run of the machine this is; Linux alone tells."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def _is_worker(process: psutil.Process) -> bool:
    return any(word.endswith(_WORKER_FILE) for word in process.cmdline())


def _runs(process: psutil.Process) -> bool:
    """Whether it still does anything: a zombie waits for its parent alone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _wait(running: Iterable[psutil.Process], timeout_s: float) -> set[psutil.Process]:
    """Wait until none runs; return those that do. Zombies that are not ours are not waited for."""
    left, end = set(running), time.monotonic() + timeout_s
    while left and time.monotonic() < end:
        _, alive = psutil.wait_procs(left, timeout=_POLL_S)
        left = set(filter(_runs, alive))
    return left


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
