"""The load of a version, from TorchServe's metrics and from its workers."""

from typing import Any

import pytest

from marship.client.clients import ModelStatus
from marship.engines.load import ModelLoad
from marship.engines.metrics import of_versions
from marship.engines.torchserve import loads

STATUS = ModelStatus("m", "1.0", "m.mar", 1, 1, 1, 1, 60, False, ())
OWN = """
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="m",model_version="default",hostname="h",} 30.0
ts_inference_requests_total{model_name="m",model_version="1.0",hostname="h",} 10.0
ts_queue_latency_microseconds{model_name="m",model_version="default",hostname="h",} 2.5E6
ts_inference_latency_microseconds{model_name="m",model_version="default",hostname="h",} 4.0E6
ts_inference_requests_total{model_name="n",model_version="1.0",hostname="h",} 7.0
Requests2XX{Level="Host",Hostname="h",} 40.0
"""
WORKERS = """
marship_batches_total{model_name="m",model_version="1.0",Hostname="h",} 20.0
marship_decode_seconds_total{model_name="m",model_version="1.0",Hostname="h",} 0.25
marship_infer_seconds_total{model_name="m",model_version="1.0",Hostname="h",} 1.0
"""


def load(figures: str, direct: dict[str, Any]) -> ModelLoad:
    """The load of the default version."""
    found = of_versions(figures)
    own: dict[str, float] = {}
    for label in ("1.0", "default"):
        for name, value in found.get(("m", label), {}).items():
            own[name] = own.get(name, 0.0) + value
    return loads._load(STATUS, own, direct)


def test_torchserves_counters_are_enough() -> None:
    """A handler that tells nothing: each request is a call, and runs when it leaves the queue."""
    found = load(OWN, {})
    assert (found.source, found.requests, found.calls) == ("engine", 40, 40)
    assert (found.waited_s, found.own_s, found.busy_s) == (2.5, 4.0, 1.5)
    assert found.took == ()


def test_workers_metrics_tell_calls_and_their_seconds() -> None:
    """A batch is one call."""
    found = load(OWN + WORKERS, {})
    assert (found.calls, found.busy_s) == (20, 1.25)


def test_workers_that_tell_at_once_are_believed() -> None:
    """They count requests of both addresses, and TorchServe the time in its queue."""
    found = load(OWN + WORKERS, {"ongoing": 5, "done": [90, 60, 8.0, 3.0, 80, 10, 0]})
    assert (found.source, found.requests, found.calls, found.busy_s) == ("workers", 90, 60, 8.0)
    assert found.waited_s == pytest.approx(5.5)
    assert (found.ongoing, found.took) == (5, (80, 10, 0))
