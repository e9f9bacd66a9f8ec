"""A worker's metrics, reported to TorchServe every few seconds.

It parses them from lines on a worker's standard output with a regular expression each; so they are
aggregated first.
"""

import socket
import sys
import threading
import time
from typing import TextIO

from marship.serving.metrics import Metrics

INTERVAL_S = 5.0


def start(metrics: Metrics, model: str, version: str) -> None:
    """Start reporting, until the worker exits."""

    def run() -> None:
        while True:
            time.sleep(INTERVAL_S)
            write(metrics, model, version, sys.stdout)

    threading.Thread(target=run, name="metrics", daemon=True).start()


def write(metrics: Metrics, model: str, version: str, sink: TextIO) -> None:
    """Write what was counted since the last report."""
    dimensions = f"model_name:{model},model_version:{version}"
    counts, gauges = metrics.take()
    for count in counts:
        of = f"{dimensions},code:{count.code}" if count.code else dimensions
        number = f"{count.value:.9f}" if isinstance(count.value, float) else count.value
        sink.write(_line(f"{count.name}.{count.unit}:{number}", of, "COUNTER"))
    sink.writelines(
        _line(f"{gauge.name}.{gauge.unit}:{gauge.value}", dimensions, "GAUGE") for gauge in gauges
    )
    sink.flush()


def _line(value: str, dimensions: str, kind: str) -> str:
    host, now = socket.gethostname(), int(time.time())
    return f"[METRICS]{value}|#{dimensions}|#type:{kind}|#hostname:{host},{now}\n"
