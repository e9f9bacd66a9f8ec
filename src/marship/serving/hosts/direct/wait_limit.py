"""Until when a connection may wait for what it waits for."""

import math
import time

from marship.serving.hosts.direct.limits import Limits


class WaitLimit:
    """The end of what a connection waits for now.

    A wait that goes on is not prolonged: bytes that trickle in win no time, those of a body in
    chunks as much as bytes of a body win whose length is known.

    Args:
        limits: How long each wait may take.

    Attributes:
        at: By the monotonic clock.
        began: By the same.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.at, self.began, self._kind = math.inf, 0.0, ""
        self.head()

    def renew(self) -> None:
        """The next wait has all its time, also for what was waited for before."""
        self._kind = ""

    def head(self) -> None:
        """The rest of a request line and headers is to come."""
        self._begin("head", self._limits.head_s)

    def body(self, size: int, *, is_wanted: bool) -> None:
        """The rest of a body is to come, which has so many bytes, or so many of them have come."""
        self._begin("body" if is_wanted else "dropped", self._limits.body_s)
        self.at = self.began + self._limits.body_s + size / self._limits.body_rate

    def idle(self) -> None:
        """The next request is to come."""
        self._begin("idle", self._limits.idle_s)

    @property
    def is_idle(self) -> bool:
        """Whether the next request is waited for, and nothing of it has come."""
        return self._kind == "idle"

    @property
    def is_unproven(self) -> bool:
        """Whether a head is waited for, or a body that is dropped."""
        return self._kind in ("head", "dropped")

    def response(self) -> None:
        """The model has its own limit."""
        self._kind, self.at = "response", math.inf

    def writing(self) -> None:
        """The client is to take some bytes."""
        self._kind, self.at = "writing", time.monotonic() + self._limits.stalled_s

    def closing(self) -> None:
        """What the client still sends is to end."""
        self._kind, self.at = "closing", time.monotonic() + self._limits.linger_s

    def _begin(self, kind: str, seconds: float) -> None:
        if self._kind != kind:
            self._kind, self.began = kind, time.monotonic()
            self.at = self.began + seconds
