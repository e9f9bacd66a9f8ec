"""A worker's metrics, counted in memory that others read, or reported by its host.

`requests / batches` is the batch size, `seconds / batches` the mean time of a batch; Prometheus'
`rate()` gives both over time.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from marship.serving import sheet
from marship.serving.message import OK
from marship.serving.sheet import Labels, Sheet

logger = logging.getLogger(__name__)

SHEETS_VARIABLE = "MARSHIP_SHEETS"
"""The folder where workers count; set by the host."""
STEPS = ("decode", "infer", "encode")
SECONDS_S = (
    *(1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Upper bounds of the histograms of times."""
SIZES = tuple(2.0**power for power in range(9))
"""Those of the histogram of batch sizes, 1 to 256."""
TIMES_S = tuple(1e-3 * 2 ** (step / 2) for step in range(33))
"""Upper bounds of the times that requests take, 1 ms to 65 s; one more class has what is longer."""
_SECONDS, _SIZES, _TIMES = map(np.array, (SECONDS_S, SIZES, TIMES_S))
_MOST_NOTED = 256
"""Batches until they are counted; else `load` and `take` do, twice a second."""
_TIMING = ", ".join(f"{step};dur=%.3f" for step in STEPS)
_UNITS = {
    "marship_requests_total": "requests",
    "marship_batches_total": "batches",
    "marship_errors_total": "answers",
    "marship_rechecks_total": "rows",
    "marship_recheck_differences_total": "rows",
}
"""Of counters as a host reports them; all others are seconds."""


_Floats = npt.NDArray[np.float64]
_Batch = tuple[int, Mapping[str, float], Sequence[str]]
"""Requests, seconds of each step, codes of errors."""
_Times = tuple[Sequence[float], float, float, Sequence[str], bool]
"""When they came, when the batch began and ended, their codes, whether the queue is known."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric's value; `code` is that of an error, empty for other metrics."""

    name: str
    unit: str
    value: float
    code: str = ""


class _Places:
    """Where requests with one outcome are counted."""

    __slots__ = ("decode", "encode", "infer", "queue", "total")

    def __init__(self, counted: Sheet, code: str) -> None:
        labels = (("code", code),)

        def place(step: str) -> int:
            name = f"marship_request_{step}_seconds"
            return counted.place(name, "histogram", labels, SECONDS_S)

        self.queue, self.total = place("queue"), place("duration")
        self.decode, self.infer, self.encode = map(place, STEPS)


class Metrics:
    """Counters of one model in one worker; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._joining_ended: bool | None = None  # None if there is nothing to report
        self._requests = self._calls = 0
        self._busy_s = self._waited_s = 0.0
        self._took = np.zeros(len(TIMES_S) + 1, np.int64)
        self._batches: deque[_Batch] = deque()  # noted, and not counted yet
        self._times: deque[_Times] = deque()
        self._drift = 0.0
        self._use(Sheet())

    def _use(self, counted: Sheet) -> None:
        self._sheet, self._sums = counted, counted.values
        self._reported = {  # what a worker before has counted is not this one's to report
            (one.name, one.labels): found[0] for one, found in counted.read()
        }
        self._requests_at = counted.place("marship_requests_total", "counter")
        self._batches_at = counted.place("marship_batches_total", "counter")
        self._steps_at = {
            step: counted.place(f"marship_{step}_seconds_total", "counter") for step in STEPS
        }
        self._sizes_at = counted.place("marship_batch_size", "histogram", (), SIZES)
        self._ended_at = counted.place("marship_joining_ended", "gauge")
        self._drift_at = counted.place("marship_golden_drift_ratio", "gauge")
        self._sums[self._ended_at] = int(bool(self._joining_ended))
        self._sums[self._drift_at] = self._drift
        self._places = {OK: _Places(counted, OK)}

    def share(self, folder: Path, model: str, version: str) -> None:
        """Count where others read it from now on, and go on from what a worker before counted.

        Args:
            folder: Of the sheets of all workers.
            model: The model's name.
            version: Its version.

        Raises:
            OSError: The folder cannot be written to.
        """
        counted = sheet.claimed(folder, model, version)
        with self._lock:
            self._enter()
            self._use(counted)

    def share_if_told(self, model: str, version: str) -> None:
        """Share in the folder that the environment names, if it names one."""
        if folder := os.environ.get(SHEETS_VARIABLE):
            try:
                self.share(Path(folder), model, version)
            except OSError as error:
                logger.warning("histograms of this worker cannot be read: %s", error)

    def add_batch(
        self, requests: int, seconds: Mapping[str, float], failed: Sequence[str] = ()
    ) -> None:
        """Count a batch, and the time that each step of it took.

        Args:
            requests: How many it had.
            seconds: The time of each step; not to be changed any more.
            failed: The codes of those that got errors.
        """
        self._batches.append((requests, seconds, failed))
        if len(self._batches) >= _MOST_NOTED:
            with self._lock:
                self._enter()

    def add_times(
        self,
        came_s: Sequence[float],
        began_s: float,
        codes: Sequence[str] = (),
        *,
        knows_queue: bool = True,
    ) -> None:
        """Count how long a batch's requests waited, and took until now.

        Args:
            came_s: When each came, by `time.perf_counter`.
            began_s: When the batch began.
            codes: The code of each, `OK` or an error's; empty where all are well.
            knows_queue: Whether they came when they were received, and not when the batch began.
        """
        self._times.append((came_s, began_s, time.perf_counter(), codes, knows_queue))
        if len(self._times) >= _MOST_NOTED:
            with self._lock:
                self._enter()

    def _enter(self) -> None:
        """Count what was noted; the lock is held.

        Many at a time: one by one they would cost half of what a small model does.
        """
        if self._batches:
            self._enter_batches([self._batches.popleft() for _ in range(len(self._batches))])
        if self._times:
            self._enter_times([self._times.popleft() for _ in range(len(self._times))])

    def _enter_batches(self, noted: Sequence[_Batch]) -> None:
        requests = np.array([batch[0] for batch in noted], np.float64)
        well = requests - [len(batch[2]) for batch in noted]
        sums = self._sums
        sums[self._requests_at] += requests.sum()
        sums[self._batches_at] += len(noted)
        _observe(sums, self._sizes_at, _SIZES, requests)
        for step in STEPS:
            spent = np.array([batch[1].get(step, 0.0) for batch in noted], np.float64)
            sums[self._steps_at[step]] += spent.sum()
            self._busy_s += float(spent.sum())
            _observe(sums, getattr(self._places[OK], step), _SECONDS, spent, well)
        self._requests += int(requests.sum())
        self._calls += len(noted)
        for _, seconds, failed in noted:
            for code in failed:
                for step in STEPS:
                    at = getattr(self._of(code), step)
                    _observe(sums, at, _SECONDS, np.array([seconds.get(step, 0.0)]))

    def _enter_times(self, noted: Sequence[_Times]) -> None:
        sizes = [len(each[0]) for each in noted]
        came = np.array([one for each in noted for one in each[0]], np.float64)
        began, ended, known = (
            np.repeat(np.array([each[at] for each in noted]), sizes) for at in (1, 2, 4)
        )
        waited, took = began - came, ended - came
        self._waited_s += float(waited.sum())
        self._took += np.bincount(np.searchsorted(_TIMES, took), minlength=len(self._took))
        if any(each[3] for each in noted):
            each_code = [each[3] or [OK] * size for each, size in zip(noted, sizes, strict=True)]
            codes = np.array([code for of in each_code for code in of])
            for code in np.unique(codes):
                chosen = codes == code
                self._enter_outcome(str(code), took[chosen], waited[chosen & known])
        else:
            self._enter_outcome(OK, took, waited[known])

    def _enter_outcome(self, code: str, took: _Floats, waited: _Floats) -> None:
        at = self._of(code)
        _observe(self._sums, at.total, _SECONDS, took)
        _observe(self._sums, at.queue, _SECONDS, waited)

    def _of(self, code: str) -> _Places:
        """Where requests with this code are counted."""
        if (found := self._places.get(code)) is None:
            try:
                found = _Places(self._sheet, code)
            except ValueError:  # a handler that makes up codes has filled it
                found = self._places[OK]
            self._places[code] = found
        return found

    def load(self) -> list[float]:
        """What was done since the worker started, never less than before.

        Requests, calls of the model, seconds in calls, seconds of requests in this worker's queue,
        and requests by how long they took (`TIMES_S`).
        """
        with self._lock:
            self._enter()
            took = self._took.tolist()
            return [self._requests, self._calls, self._busy_s, self._waited_s, *took]

    def add_error(self, code: str) -> None:
        """Count a response that is an error, by its stable code."""
        with self._lock:
            self._count("marship_errors_total", (("code", code),))

    def add_recheck(self, *, differs: bool) -> None:
        """Count a row of a batch that was run again alone."""
        with self._lock:
            self._count("marship_rechecks_total")
            if differs:
                self._count("marship_recheck_differences_total")

    def _count(self, name: str, labels: Labels = ()) -> None:
        """Count what is rare; the lock is held."""
        try:
            at = self._sheet.place(name, "counter", labels)
        except ValueError:
            at = self._sheet.spare
        self._sums[at] += 1

    def set_joining_ended(self, *, ended: bool) -> None:
        """Set whether batching was stopped, as batched outputs differed from those alone."""
        with self._lock:
            self._joining_ended = ended
            self._sums[self._ended_at] = int(ended)

    def set_golden_drift(self, ratio: float) -> None:
        """Set by how much golden outputs are off here, as a share of what they may be."""
        with self._lock:
            self._drift = self._sums[self._drift_at] = ratio

    def forget(self) -> None:
        """Forget what was counted; what the gauges have to say stays."""
        with self._lock:
            self._enter()
            self._use(Sheet())

    def take(self) -> tuple[list[Figure], list[Figure]]:
        """Increments of counters since the last call, and gauges that have changed."""
        with self._lock:
            self._enter()
            counts = list(self._increments())
            ended = self._joining_ended
            self._joining_ended = ended or None  # said again, over a younger worker's no
        if ended is None:
            return counts, []
        return counts, [Figure("marship_joining_ended", "models", int(ended))]

    def _increments(self) -> Iterable[Figure]:
        for series, (value, *_) in self._sheet.read():
            if series.kind != "counter" or series.name not in _HOST_REPORTS:
                continue
            key = (series.name, series.labels)
            more = value - self._reported.get(key, 0.0)
            self._reported[key] = value
            if more:
                unit = _UNITS.get(series.name, "seconds")
                shown = more if unit == "seconds" else int(more)
                yield Figure(series.name, unit, shown, dict(series.labels).get("code", ""))


_HOST_REPORTS = {*_UNITS, *(f"marship_{step}_seconds_total" for step in STEPS)}


def _observe(
    sums: _Floats, at: int, bounds: _Floats, seen: _Floats, times: _Floats | None = None
) -> None:
    """Count values in a histogram, each as often as it was seen."""
    buckets = np.bincount(np.searchsorted(bounds, seen), times, minlength=len(bounds) + 1)
    sums[at : at + len(buckets)] += buckets
    sums[at + len(buckets)] += (seen if times is None else seen * times).sum()


class Clock:
    """Measures the time of each step of a batch."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """Add the time since the last lap to a step."""
        now = time.perf_counter()
        self.seconds[step] += now - self._last
        self._last = now

    def server_timing(self) -> str:
        """The Server-Timing header (W3C); durations are of the whole batch, in milliseconds."""
        return _TIMING % tuple(s * 1e3 for s in self.seconds.values())
