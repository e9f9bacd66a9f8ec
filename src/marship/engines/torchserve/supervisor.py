"""Child processes that are started again when they crash."""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

ENDED = 0
"""The exit code of a child that is not started again: with it, all end."""

_AGAIN_S = 0.1


def keep(children: Mapping[str, Callable[[], None]]) -> None:
    """Run functions, each in a process of its own, until one returns; then end the others.

    SIGTERM ends this process, and the kernel its children.

    Args:
        children: What to run, by the name that the log gives it.
    """
    # each entry has its time, the children's too: `marship logs` sorts by it
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, str] = {}
    while True:
        for name in children.keys() - set(running.values()):
            running[_fork(children[name])] = name
        pid, status = os.wait()
        name = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if code == ENDED:
            for other in running:
                os.kill(other, signal.SIGKILL)
            return
        if code < 0:  # else it has said why
            logger.error("the %s was ended by signal %d", name, -code)
        time.sleep(_AGAIN_S)


def _fork(run: Callable[[], None]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _end_with_parent(parent)
        run()
        code = ENDED
    except Exception as error:  # the log is all that is left to tell
        logger.error("%s: %s", type(error).__name__, error)  # noqa: TRY400  one line
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end_with_parent(parent: int) -> None:
    """Let the kernel end this process with its parent (prctl(2), PR_SET_PDEATHSIG)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(ENDED)  # it ended before the kernel knew
