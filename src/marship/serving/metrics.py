"""A worker's figures, added up here and reported every few seconds.

TorchServe takes metrics as lines on a worker's standard output, each of which costs its
frontend a regular expression. Counters can wait: `requests / batches` is the batch size,
`seconds / batches` the mean time of a batch, and `rate()` gives both over time.
"""

import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import TextIO

INTERVAL_S = 5.0
_Key = tuple[str, str, str]  # name, unit, error code or nothing


class Metrics:
    """Counters of one model in one worker.

    Args:
        model: Its name.
        version: Its version.
        sink: Where lines go; the worker's standard output.
    """

    def __init__(self, model: str, version: str, sink: TextIO | None = None) -> None:
        self._dimensions = f"model_name:{model},model_version:{version}"
        self._sink = sink
        self._lock = threading.Lock()
        self._totals: Counter[_Key] = Counter()
        self._joining_ended: bool | None = None  # None where there is nothing new to say

    def add_batch(self, requests: int, seconds: Mapping[str, float]) -> None:
        """Count a batch, and the time that each step of it took."""
        with self._lock:
            self._totals["marship_requests_total", "requests", ""] += requests
            self._totals["marship_batches_total", "batches", ""] += 1
            for step, spent in seconds.items():
                self._totals[f"marship_{step}_seconds_total", "seconds", ""] += spent  # type: ignore[assignment]

    def add_error(self, code: str) -> None:
        """Count an answer that is an error, by its stable code."""
        with self._lock:
            self._totals["marship_errors_total", "answers", code] += 1

    def add_recheck(self, *, differs: bool) -> None:
        """Count a row of a joined call that was repeated alone."""
        with self._lock:
            self._totals["marship_rechecks_total", "rows", ""] += 1
            if differs:
                self._totals["marship_recheck_differences_total", "rows", ""] += 1

    def set_joining_ended(self, *, ended: bool) -> None:
        """Whether requests run alone, since joined ones were not answered as they are alone."""
        with self._lock:
            self._joining_ended = ended

    def report(self) -> None:
        """Write what was counted since the last report."""
        with self._lock:
            totals, self._totals = self._totals, Counter()
            ended = self._joining_ended
            self._joining_ended = ended or None  # said again, over a younger worker's no
        sink = self._sink or sys.stdout
        for (name, unit, code), value in totals.items():
            dimensions = f"{self._dimensions},code:{code}" if code else self._dimensions
            number = f"{value:.9f}" if isinstance(value, float) else value
            sink.write(_line(f"{name}.{unit}:{number}", dimensions, "COUNTER"))
        if ended is not None:
            sink.write(_line(f"marship_joining_ended.models:{ended:d}", self._dimensions, "GAUGE"))
        sink.flush()

    def start(self) -> None:
        """Report from now on, until the worker ends."""

        def run() -> None:
            while True:
                time.sleep(INTERVAL_S)
                self.report()

        threading.Thread(target=run, name="metrics", daemon=True).start()


def _line(value: str, dimensions: str, kind: str) -> str:
    host, now = socket.gethostname(), int(time.time())
    return f"[METRICS]{value}|#{dimensions}|#type:{kind}|#hostname:{host},{now}\n"
