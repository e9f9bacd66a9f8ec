"""Whether workers are at work is seen from the processor time that they use."""

import os
import time

from marship.client import ModelStatus, Worker
from marship.torchserve.draining import _Effort


def status(*pids: int) -> ModelStatus:
    """A version with these workers."""
    workers = tuple(Worker(str(pid), pid, True) for pid in pids)
    return ModelStatus("m", "1.0", "m.mar", 1, 1, 1, 1, 60, False, workers)


def test_a_process_at_work_is_seen_and_an_idle_one_is_not() -> None:
    """This process, asleep and counting; one that is new has done something."""
    effort = _Effort(is_local=True)
    assert effort.is_spent(status(os.getpid()))
    time.sleep(0.3)
    assert not effort.is_spent(status(os.getpid()))
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert effort.is_spent(status(os.getpid()))


def test_processes_that_ended_or_run_elsewhere_do_nothing() -> None:
    """A worker that died, and a server whose process numbers mean nothing here."""
    assert not _Effort(is_local=True).is_spent(status(2**22 + 1))
    assert not _Effort(is_local=False).is_spent(status(os.getpid()))
