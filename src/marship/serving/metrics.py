"""A worker's metrics, aggregated until its host collects them.

`requests / batches` is the batch size, `seconds / batches` the mean time of a batch; Prometheus'
`rate()` gives both over time.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_Key = tuple[str, str, str]  # name, unit, error code or nothing

_REQUESTS: _Key = ("marship_requests_total", "requests", "")
_BATCHES: _Key = ("marship_batches_total", "batches", "")
_STEPS: dict[str, _Key] = {
    step: (f"marship_{step}_seconds_total", "seconds", "") for step in ("decode", "infer", "encode")
}
TIMES_S = tuple(1e-3 * 2 ** (step / 2) for step in range(33))
"""Upper bounds of the times that requests take, 1 ms to 65 s; one more class has what is longer."""
_TIMING = ", ".join(f"{step};dur=%.3f" for step in _STEPS)


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric's value; `code` is that of an error, empty for other metrics."""

    name: str
    unit: str
    value: float
    code: str = ""


class Metrics:
    """Counters of one model in one worker; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[_Key] = Counter()
        self._joining_ended: bool | None = None  # None if there is nothing to report
        self._requests = self._calls = 0
        self._busy_s = self._waited_s = 0.0
        self._took = [0] * (len(TIMES_S) + 1)

    def add_batch(self, requests: int, seconds: Mapping[str, float]) -> None:
        """Count a batch, and the time that each step of it took."""
        with self._lock:
            self._totals[_REQUESTS] += requests
            self._totals[_BATCHES] += 1
            self._requests += requests
            self._calls += 1
            self._busy_s += sum(seconds.values())
            for step, spent in seconds.items():
                self._totals[_STEPS[step]] += spent  # type: ignore[assignment]

    def add_times(self, came_s: Sequence[float], began_s: float) -> None:
        """Count how long a batch's requests waited, and took until now.

        Args:
            came_s: When each came, by `time.perf_counter`, the first one first.
            began_s: When the batch began.
        """
        now = time.perf_counter()
        longest, shortest = (bisect_left(TIMES_S, now - came_s[i]) for i in (0, -1))
        with self._lock:
            self._waited_s += began_s * len(came_s) - sum(came_s)
            if longest == shortest:  # a bisection each would cost what a small model does
                self._took[longest] += len(came_s)
                return
            for each in came_s:
                self._took[bisect_left(TIMES_S, now - each)] += 1

    def load(self) -> list[float]:
        """What was done since the worker started, never less than before.

        Requests, calls of the model, seconds in calls, seconds of requests in this worker's queue,
        and requests by how long they took (`TIMES_S`).
        """
        with self._lock:
            return [self._requests, self._calls, self._busy_s, self._waited_s, *self._took]

    def add_error(self, code: str) -> None:
        """Count a response that is an error, by its stable code."""
        with self._lock:
            self._totals["marship_errors_total", "answers", code] += 1

    def add_recheck(self, *, differs: bool) -> None:
        """Count a row of a batch that was run again alone."""
        with self._lock:
            self._totals["marship_rechecks_total", "rows", ""] += 1
            if differs:
                self._totals["marship_recheck_differences_total", "rows", ""] += 1

    def set_joining_ended(self, *, ended: bool) -> None:
        """Set whether batching was stopped, as batched outputs differed from those alone."""
        with self._lock:
            self._joining_ended = ended

    def forget(self) -> None:
        """Forget what was counted; what the gauges have to say stays."""
        with self._lock:
            self._totals = Counter()

    def take(self) -> tuple[list[Figure], list[Figure]]:
        """Increments of counters since the last call, and gauges that have changed."""
        with self._lock:
            totals, self._totals = self._totals, Counter()
            ended = self._joining_ended
            self._joining_ended = ended or None  # said again, over a younger worker's no
        counts = [Figure(name, unit, value, code) for (name, unit, code), value in totals.items()]
        if ended is None:
            return counts, []
        return counts, [Figure("marship_joining_ended", "models", int(ended))]


class Clock:
    """Measures the time of each step of a batch."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(_STEPS, 0.0)
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """Add the time since the last lap to a step."""
        now = time.perf_counter()
        self.seconds[step] += now - self._last
        self._last = now

    def server_timing(self) -> str:
        """The Server-Timing header (W3C); durations are of the whole batch, in milliseconds."""
        return _TIMING % tuple(s * 1e3 for s in self.seconds.values())
