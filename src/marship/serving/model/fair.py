"""A lock that is taken in the order in which threads came."""

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """As `threading.Lock` in a with statement, but first come, first served.

    A thread that takes an unfair lock again at once keeps all others waiting: one long stream would
    keep every other request of its worker.
    """

    def __init__(self) -> None:
        self._state = threading.Lock()
        self._is_held = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._state:
            if not self._is_held:
                self._is_held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()  # until whoever holds the lock hands it over

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._state:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_held = False
