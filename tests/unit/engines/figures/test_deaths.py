"""What is logged and counted when a worker dies."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from marship.engines.figures import deaths, sheets
from marship.engines.figures.deaths import Deaths, cause_of, told
from marship.serving import sheet
from marship.serving.hosts.direct import slots
from marship.serving.hosts.direct.death import Death, exit_code
from marship.serving.hosts.direct.seats import Staff

GRANDCHILD = """
import subprocess, sys
grand = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(int(input()))"])
print(grand.pid, flush=True)
grand.wait()
"""


def death(code: int | None, **more: int) -> Death:
    """Of a worker of m 1.0 with connections in some states."""
    states = {getattr(slots, name): count for name, count in more.items()}
    return Death(4711, "m", "1.0", code, False, states)


@pytest.mark.parametrize(("signal_sent", "wanted"), [(9, -9), (11, -11), (None, 3)])
def test_the_kernel_tells_how_another_ones_child_ended(
    signal_sent: int | None, wanted: int
) -> None:
    """TorchServe is the parent of a worker; whoever holds a descriptor learns its status, too."""
    parent = subprocess.Popen(
        [sys.executable, "-c", GRANDCHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    process = os.pidfd_open(pid)
    assert exit_code(process) is None  # it lives
    if signal_sent is not None:
        os.kill(pid, signal_sent)
    parent.communicate(b"3\n")
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert exit_code(process) == (wanted if release >= (6, 15) else None)
    os.close(process)


@pytest.mark.parametrize(
    ("one", "is_memory", "cause", "said"),
    [
        (death(-9), True, "memory", "signal 9 (SIGKILL), from the kernel, as memory ran out."),
        (death(-9), False, "signal", "signal 9 (SIGKILL)."),
        (death(-11, BEGUN=1), True, "signal", "signal 11 (SIGSEGV). 1 request got 503 worker_died"),
        (death(1, LATE=2), False, "timeout", "2 requests got 504 response_timeout"),
        (
            death(7, PARTLY=1, IDLE=3),
            False,
            "exit",
            "exit code 7. 1 response ends in the",
        ),
        (death(None), False, "unknown", "how is not known"),
        (death(-64), False, "signal", "signal 64 (SIGRTMAX). No client was connected."),
    ],
)
def test_a_line_names_the_worker_its_end_and_its_requests(
    one: Death, is_memory: bool, cause: str, said: str
) -> None:
    """By signal, exit code, memory or timeout, and what clients got."""
    assert cause_of(one, is_memory=is_memory) == cause
    line = told(one, cause_of(one, is_memory=is_memory), Staff("m", "1.0", 1, 2, 0, 1))
    assert line.startswith("worker 4711 of m 1.0 died: ")
    assert said in line
    assert "1 of 2 workers serve" in line


def judged(folder: Path, staff: list[Staff] | Callable[[], list[Staff]], *noted: Death) -> float:
    """How many deaths were counted."""
    loop = asyncio.new_event_loop()
    watch = Deaths(loop, folder, staff if callable(staff) else lambda: staff, lambda: 0)
    for one in noted:
        watch.note(one)
    loop.call_later(deaths._JUDGED_S + 0.3, loop.stop)
    loop.run_forever()
    loop.close()
    return sum(v[0] for one in sheet.read(folder) for _, v in one.series)


def test_only_ends_that_nobody_wants_are_deaths(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not those of a version that was scaled down or unregistered; counts outlive an acceptor."""
    with caplog.at_level(logging.ERROR):
        assert judged(tmp_path, [Staff("m", "1.0", 1, 1, 0, 1)], death(-9)) == 0
        assert judged(tmp_path, [], death(-9)) == 0
        assert not caplog.records
        assert judged(tmp_path, [Staff("m", "1.0", 1, 2, 0, 1)], death(-9), death(1)) == 2
        assert judged(tmp_path, [Staff("m", "1.0", 0, 2, 0, 0)], death(-9)) == 3
    assert len(caplog.records) == 3
    scaled = [
        [Staff("m", "1.0", 1, wanted, 0, 1)] for wanted in (2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2)
    ]
    assert judged(tmp_path, lambda: scaled.pop(0), death(-9)) == 3  # down, and up again at once
    replaced = [[Staff("m", "1.0", 1, 2, 0, here)] for here in (1, 1, 2, 2, 2)]
    assert judged(tmp_path, lambda: replaced.pop(0), death(-9)) == 4  # another one comes at once


def test_every_cause_is_shown_before_anybody_dies_of_it() -> None:
    """Or Prometheus would miss the first one of each."""
    assert set(get_args(deaths.Cause)) == set(sheets.CAUSES)


def test_memory_that_ran_out_is_told_by_the_kernels_counter(tmp_path: Path) -> None:
    """A counter that grew since the last death; no number of signals tells it from a kill -9."""
    counts = iter([5, 6, 6])
    seen = []
    loop = asyncio.new_event_loop()
    watch = Deaths(loop, tmp_path, lambda: [Staff("m", "1.0", 0, 1, 0, 0)], lambda: next(counts))
    watch._judge = lambda _one, cause, _found: seen.append(cause)  # type: ignore[method-assign]
    for _ in range(2):
        watch.note(death(-signal.SIGKILL))
    loop.call_later(deaths._JUDGED_S + 0.1, loop.stop)
    loop.run_forever()
    loop.close()
    assert seen == ["memory", "signal"]
    assert deaths.memory_kills() >= 0
