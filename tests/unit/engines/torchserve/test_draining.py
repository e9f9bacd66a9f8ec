"""Whether workers are at work is seen from the processor time that they use."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from marship.client.clients import ModelStatus, Worker
from marship.engines.torchserve.draining import _CpuUse

SLEEPS = "input()"
COUNTS = "print(flush=True)\nwhile True: pass"


def status(*pids: int) -> ModelStatus:
    """A version with these workers."""
    workers = tuple(Worker(str(pid), pid, True) for pid in pids)
    return ModelStatus("m", "1.0", "m.mar", 1, 1, 1, 1, 60, False, workers)


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own: this one has threads of other tests, which may be at work."""
    command = [sys.executable, "-S", "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def settled(effort: _CpuUse, pid: int) -> bool:
    """Whether the process is seen idle within a minute, over intervals of half a second."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.5)  # use of the processor is measured over an interval
        if not effort.is_spent(status(pid)):
            return True
    return False


def test_an_idle_process_is_seen() -> None:
    """It is at work while Python starts, and then never again."""
    effort = _CpuUse(is_local=True)
    with process(SLEEPS) as idle:
        assert settled(effort, idle.pid)
        time.sleep(0.5)  # use of the processor is measured over an interval
        assert not effort.is_spent(status(idle.pid))


def test_a_worker_that_is_not_started_is_idle() -> None:
    """TorchServe lists it with the pid -1 before it has a process."""
    effort = _CpuUse(is_local=True)
    assert not effort.is_spent(status(-1))


def test_a_process_at_work_is_seen() -> None:
    """It counts, and gets its share of the processors even on a busy machine."""
    effort = _CpuUse(is_local=True)
    with process(COUNTS) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        for _ in range(3):
            time.sleep(0.5)  # use of the processor is measured over an interval
            assert effort.is_spent(status(busy.pid))


def test_processes_that_ended_or_run_elsewhere_do_nothing() -> None:
    """A worker that died, and a server whose process numbers mean nothing here."""
    assert not _CpuUse(is_local=True).is_spent(status(2**22 + 1))
    with process(COUNTS) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        assert not _CpuUse(is_local=False).is_spent(status(busy.pid))
