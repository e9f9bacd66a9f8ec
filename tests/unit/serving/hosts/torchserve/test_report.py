"""A worker's counters, as TorchServe's frontend reads them."""

import io
import re

from marship.serving.hosts.torchserve.report import write
from marship.serving.metrics import Metrics

# what the frontend's Metric class takes apart (org.pytorch.serve.metrics.Metric, 0.12.0)
LINE = re.compile(
    r"\[METRICS\]([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)\|#type:([^|,]+)\|#hostname:([^,]+),(\d+)"
)


def reported(metrics: Metrics, sink: io.StringIO) -> dict[str, float]:
    """What one report says, by name and dimensions."""
    sink.seek(0)
    sink.truncate()
    write(metrics, "m", "1.0", sink)
    found = [LINE.fullmatch(line) for line in sink.getvalue().splitlines()]
    assert all(found)
    return {f"{m[1]}{{{m[4]}}}": float(m[3]) for m in found if m}


def test_counters_add_up_between_reports_and_start_again() -> None:
    """A report holds what came since the last; nothing is said twice, nothing when idle."""
    sink = io.StringIO()
    metrics = Metrics()
    metrics.add_batch(3, {"decode": 0.25, "infer": 1e-9})
    metrics.add_batch(2, {"decode": 0.5, "infer": 0.0})
    metrics.add_error("malformed")
    dimensions = "model_name:m,model_version:1.0"
    assert reported(metrics, sink) == {
        f"marship_requests_total{{{dimensions}}}": 5,
        f"marship_batches_total{{{dimensions}}}": 2,
        f"marship_decode_seconds_total{{{dimensions}}}": 0.75,
        f"marship_infer_seconds_total{{{dimensions}}}": 1e-9,
        f"marship_errors_total{{{dimensions},code:malformed}}": 1,
    }
    assert reported(metrics, sink) == {}
