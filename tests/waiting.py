"""Waiting for a condition that raises no event: files, processes and servers of other programs."""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 0.01
Found = TypeVar("Found")


def until(look: Callable[[], Found], timeout_s: float, what: str, poll_s: float = POLL_S) -> Found:
    """Look again until it is true, and return what was seen.

    Raises:
        AssertionError: It was not true in time.
    """
    end = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end, f"{what} must happen within {timeout_s} s, got {found!r}"
        time.sleep(poll_s)  # what is waited for raises no event
    return found
