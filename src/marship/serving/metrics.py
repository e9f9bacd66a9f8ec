"""A worker's metrics, aggregated until its host collects them.

`requests / batches` is the batch size, `seconds / batches` the mean time of a batch; Prometheus'
`rate()` gives both over time.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

_Key = tuple[str, str, str]  # name, unit, error code or nothing

_REQUESTS: _Key = ("marship_requests_total", "requests", "")
_BATCHES: _Key = ("marship_batches_total", "batches", "")
_STEPS: dict[str, _Key] = {
    step: (f"marship_{step}_seconds_total", "seconds", "") for step in ("decode", "infer", "encode")
}
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

    def add_batch(self, requests: int, seconds: Mapping[str, float]) -> None:
        """Count a batch, and the time that each step of it took."""
        with self._lock:
            self._totals[_REQUESTS] += requests
            self._totals[_BATCHES] += 1
            for step, spent in seconds.items():
                self._totals[_STEPS[step]] += spent  # type: ignore[assignment]

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
