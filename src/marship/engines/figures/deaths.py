"""Workers that died: logged with their names, and counted."""

import asyncio
import logging
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from marship.serving import sheet
from marship.serving.hosts.direct.death import Death
from marship.serving.hosts.direct.seats import Staff

logger = logging.getLogger(__name__)

_JUDGED_S, _LOOK_S = 0.8, 0.1
"""By then it is known whether the engine has wanted it to end."""
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))

Cause = Literal["signal", "exit", "memory", "timeout", "unknown"]


class Deaths:
    """The deaths of a server's workers.

    Args:
        loop: The acceptor's.
        folder: Of the sheets; what was counted stays there for the next acceptor.
        staff: The workers that there are.
        kills: How often the kernel ended a process for memory.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        staff: Callable[[], list[Staff]],
        kills: Callable[[], int] | None = None,
    ) -> None:
        self._loop, self._staff = loop, staff
        self._sheet = sheet.claimed(folder, "", "")
        self._kills = kills or memory_kills
        self._seen_kills = self._kills()

    def note(self, death: Death) -> None:
        """Take a worker's death, which may be an end that the engine wants."""
        kills = self._kills()
        is_memory, self._seen_kills = kills > self._seen_kills, kills
        cause = cause_of(death, is_memory=is_memory)
        found = self._staff_of(death)
        if found is not None and found.here < found.wanted:
            self._look(death, cause, found, self._loop.time() + _JUDGED_S)

    def _staff_of(self, death: Death) -> Staff | None:
        of = (death.model, death.version)
        return next((one for one in self._staff() if (one.model, one.version) == of), None)

    def _look(self, death: Death, cause: Cause, then: Staff, judged_at: float) -> None:
        found = self._staff_of(death)
        if found is None or (found.here >= found.wanted and found.wanted < then.wanted):
            return  # it was scaled down, or unregistered
        if self._loop.time() < judged_at and found.here < found.wanted:
            self._loop.call_later(_LOOK_S, self._look, death, cause, then, judged_at)
        else:  # another one may have come already
            self._judge(death, cause, then)

    def _judge(self, death: Death, cause: Cause, found: Staff) -> None:
        labels = (("model_name", death.model), ("model_version", death.version), ("cause", cause))
        with suppress(ValueError):  # too many versions since the start
            self._sheet.values[
                self._sheet.place("marship_worker_deaths_total", "counter", labels)
            ] += 1
        logger.error("%s", told(death, cause, found))


def cause_of(death: Death, *, is_memory: bool) -> Cause:
    """Why a worker ended.

    Args:
        death: How it ended.
        is_memory: Whether the kernel has just ended a process for memory.
    """
    if death.is_stuck or death.late:
        return "timeout"
    if death.code is None:
        return "unknown"
    if death.code == -signal.SIGKILL and is_memory:
        return "memory"
    return "signal" if death.code < 0 else "exit"


def told(death: Death, cause: Cause, staff: Staff) -> str:
    """The line of the log.

    Example:
        >>> staff = Staff("m", "1.0", ready=1, wanted=2, ongoing=0, here=1)
        >>> told(Death(7, "m", "1.0", -9, False, {1: 2, 0: 1}), "signal", staff)
        'worker 7 of m 1.0 died: signal 9 (SIGKILL). 2 requests got 503 worker_died, 1 connection \
goes on. 1 of 2 workers serve; another one is started.'
    """
    code = death.code
    if code is None:
        how = "how is not known, the kernel tells from Linux 6.15 on"
    elif code < 0:
        named = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        how = f"signal {-code} ({named})"
    else:
        how = f"exit code {code}"
    how += {
        "memory": ", from the kernel, as memory ran out",
        "timeout": ", as a batch took longer than its timeout",
    }.get(cause, "")
    rows = [
        (death.refused, "request", "got 503 worker_died", "got 503 worker_died"),
        (death.late, "request", "got 504 response_timeout", "got 504 response_timeout"),
        (death.cut, "response", "ends in the middle", "end in the middle"),
        (death.moved, "connection", "goes on", "go on"),
    ]
    fates = [
        f"{n} {what} {one}" if n == 1 else f"{n} {what}s {more}" for n, what, one, more in rows if n
    ]
    return (
        f"worker {death.pid} of {death.model} {death.version} died: {how}. "
        f"{', '.join(fates) or 'No client was connected'}. "
        f"{staff.here} of {staff.wanted} workers serve; another one is started."
    )


def memory_kills() -> int:
    """How often the kernel ended a process here for memory: in this cgroup, else anywhere."""
    for path in _COUNTERS:
        with suppress(OSError):
            if match := _KILLS.search(path.read_text()):
                return int(match[1])
    return 0
