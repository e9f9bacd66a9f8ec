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

    def report(self) -> None:
        """Write what was counted since the last report."""
        with self._lock:
            totals, self._totals = self._totals, Counter()
        sink = self._sink or sys.stdout
        for (name, unit, code), value in totals.items():
            dimensions = f"{self._dimensions},code:{code}" if code else self._dimensions
            number = f"{value:.9f}" if isinstance(value, float) else value
            sink.write(
                f"[METRICS]{name}.{unit}:{number}|#{dimensions}|#type:COUNTER"
                f"|#hostname:{socket.gethostname()},{int(time.time())}\n"
            )
        sink.flush()

    def start(self) -> None:
        """Report from now on, until the worker ends."""

        def run() -> None:
            while True:
                time.sleep(INTERVAL_S)
                self.report()

        threading.Thread(target=run, name="metrics", daemon=True).start()
