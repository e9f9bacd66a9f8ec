"""A process whose memory must not get onto a disk, nor into a neighbour's hands."""

import ctypes
import os
import resource

from marship.errors import SealError

PR_SET_DUMPABLE = 4
"""<linux/prctl.h>; prctl(2)."""


def forbid() -> None:
    """Allow no core dump of this process, and no debugger of its own user to read its memory.

    The limit alone would not do: where the kernel hands dumps to a program, it holds for none
    (core(5), "Piping core dumps to a program"). A process that is not dumpable has neither,
    and ptrace(2) and /proc/PID/mem are closed to all but root.

    Raises:
        SealError: The system refuses it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise SealError(
            "a worker of a sealed model must be able to forbid core dumps, got: "
            f"{os.strerror(ctypes.get_errno())}. Allow prctl(PR_SET_DUMPABLE) in its sandbox."
        )
