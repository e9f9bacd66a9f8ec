"""Protects a process's memory from core dumps and debuggers."""

import ctypes
import os
import resource

from marship.errors import SealError

PR_SET_DUMPABLE = 4
"""<linux/prctl.h>; prctl(2)."""


def forbid() -> None:
    """Disable core dumps of this process, and debuggers of the same user.

    RLIMIT_CORE is not enough: it is ignored if the kernel pipes dumps to a program (core(5),
    "Piping core dumps to a program"). A process that is not dumpable has no dumps, and ptrace(2)
    and /proc/PID/mem are restricted to root.

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
