"""The load of all versions: from the acceptor, which workers tell at once, and from the metrics.

A request goes either way: to a worker's own address, which the workers count, or through
TorchServe's frontend, whose counters have microseconds (`ts_queue_latency_microseconds` in the
queue, `ts_inference_latency_microseconds` with it). The gauge QueueTime is of one request alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from marship.engines.engine import ModelStatus
from marship.engines.load import ModelLoad
from marship.engines.metrics import of_versions
from marship.engines.torchserve import acceptor
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.models import list_models, metrics
from marship.exchange.calls import Flow, Work

_MICRO = 1e-6
_UNNAMED = "default"
"""The version in TorchServe's labels where a request names none."""
_STEPS = tuple(f"marship_{step}_seconds_total" for step in ("decode", "infer", "encode"))
_SUMS = 4

Figures = Mapping[str, float]


def list_loads(access: Access) -> Flow[list[ModelLoad]]:
    """The load of every version of every model.

    Raises:
        NotRunningError: No server runs.
        ServerError: It does not respond as expected.
    """
    models = yield from list_models(access)
    figures = of_versions((yield from metrics(access)))
    versions = [
        (status, status.version == model.default_version)
        for model in models
        for status in model.versions
    ]
    direct = yield Work(lambda: _ask(access, [status for status, _ in versions]))
    found = []
    for status, is_default in versions:
        labels = [status.version, *[_UNNAMED] * is_default]
        own: dict[str, float] = {}
        for label in labels:
            for name, value in figures.get((status.name, label), {}).items():
                own[name] = own.get(name, 0.0) + value
        found.append(_load(status, own, direct.get((status.name, status.version), {})))
    return found


def _ask(
    access: Access, versions: Sequence[ModelStatus]
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """What the acceptor says of each version; nothing where there is none, or it ends."""
    named = [(status.name, status.version) for status in versions]
    questions = [{"kind": "ask load", "model": model, "version": v} for model, v in named]
    return dict(zip(named, acceptor.ask(access, questions), strict=False))


def _load(status: ModelStatus, own: Figures, direct: Mapping[str, Any]) -> ModelLoad:
    done: Sequence[float] = direct.get("done", ())
    queued_s = _MICRO * own.get("ts_queue_latency_microseconds", 0.0)
    own_s = _MICRO * own.get("ts_inference_latency_microseconds", 0.0)
    if done:
        requests, calls, busy_s, waited_s = done[:_SUMS]
    else:
        requests, waited_s = own.get("ts_inference_requests_total", 0.0), 0.0
        calls = own.get("marship_batches_total", requests)
        # a handler of one's own tells nothing: then each request is a call
        busy_s = sum(own.get(name, 0.0) for name in _STEPS) or own_s - queued_s
    return ModelLoad(
        status=status,
        source="workers" if done else "engine",
        ongoing=direct.get("ongoing", 0),
        occupied=direct.get("occupied", 0),
        requests=requests,
        calls=calls,
        busy_s=busy_s,
        waited_s=waited_s + queued_s,
        took=tuple(done[_SUMS:]),
        took_s=tuple(direct.get("took_s", ())),
        own_s=own_s,
    )
