"""How a worker died, and what became of its requests."""

import fcntl
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from marship.serving.hosts.direct.slots import BEGUN, HANDED, IDLE, LATE, PARTLY, UNPROVEN

_INFO = struct.Struct("=QQ11Ii")
"""struct pidfd_info of linux/pidfd.h: mask, cgroup, ids, and the status as wait(2) has it."""
_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11
_HAS_EXIT = 1 << 3


@dataclass(frozen=True, slots=True)
class Death:
    """A worker's.

    Attributes:
        pid: The process.
        model: The model that it served.
        version: Its version.
        code: The exit code, or less 0 the signal; None where the kernel does not tell.
        is_stuck: Whether it was ended here, as it was silent for too long.
        states: How many connections were in each state of `slots`.
    """

    pid: int
    model: str
    version: str
    code: int | None
    is_stuck: bool
    states: Mapping[int, int]

    def _count(self, *states: int) -> int:
        return sum(self.states.get(state, 0) for state in states)

    @property
    def refused(self) -> int:
        """Requests whose clients got 503."""
        return self._count(BEGUN, UNPROVEN)

    @property
    def late(self) -> int:
        """Requests whose clients got 504: they took longer than they may."""
        return self._count(LATE)

    @property
    def cut(self) -> int:
        """Responses that end in the middle."""
        return self._count(PARTLY)

    @property
    def moved(self) -> int:
        """Connections that go on with another worker, or wait for one."""
        return self._count(HANDED, IDLE)


def exit_code(process: int) -> int | None:
    """How a process ended that is no child of this one (ioctl_pidfd(2), Linux 6.15 and newer).

    Args:
        process: Its descriptor, opened while it lived.

    Returns:
        As `Death.code`.
    """
    facts = bytearray(_INFO.size)
    struct.pack_into("=Q", facts, 0, _HAS_EXIT)
    try:
        fcntl.ioctl(process, _GET_INFO, facts)
    except OSError:
        return None
    mask, *_, status = _INFO.unpack(facts)
    return os.waitstatus_to_exitcode(status) if mask & _HAS_EXIT else None
