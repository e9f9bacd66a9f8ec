"""What autoscaling decided, for `marship status` and for Prometheus."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from marship import storage
from marship.engines import processes
from marship.engines.home import Home
from marship.engines.processes import Group
from marship.errors import DataError
from marship.operate.autoscale.policy import CAUSES, Cause


@dataclass(frozen=True, slots=True)
class ScalingState:
    """One version as autoscaling sees it.

    Attributes:
        name: The model.
        version: Its version.
        ready: Workers that are ready.
        wanted: Workers that it should have.
        least: The fewest it may have.
        most: The most.
        cause: What decided that, one of `policy.CAUSES`.
        reason: The same for a person.
        busy: The mean number of workers that ran calls; of the last window, as the next three.
        ongoing: The mean number of requests that waited or ran.
        wait_s: How long requests waited on average.
        p99_s: What 99 of 100 took; None where that is unknown.
        ups: How often workers were added since autoscaling started.
        downs: How often workers were ended.
    """

    name: str
    version: str
    ready: int
    wanted: int
    least: int
    most: int
    cause: Cause
    reason: str
    busy: float = 0.0
    ongoing: float = 0.0
    wait_s: float = 0.0
    p99_s: float | None = None
    ups: int = 0
    downs: int = 0


def write(home: Home, states: Sequence[ScalingState]) -> None:
    """Write what was decided, and by which process."""
    pid = os.getpid()
    storage.write_json(
        home.autoscale_file,
        {
            "process": asdict(Group(pid, processes.start_time(pid), processes.boot_id())),
            "versions": [asdict(state) for state in states],
        },
    )


def read(home: Home) -> list[ScalingState]:
    """What was decided last; nothing where autoscaling does not run."""
    try:
        content = storage.read_json(home.autoscale_file)
        if not Group(**content["process"]).is_alive():
            return []
        return [ScalingState(**state) for state in content["versions"]]
    except (storage.MissingError, DataError, KeyError, TypeError):
        return []  # it is written anew within a second


_GAUGES = {
    "ready": "workers that are ready",
    "wanted": "workers that autoscaling wants",
    "least": "fewest workers allowed",
    "most": "most workers allowed",
    "busy": "mean number of workers that ran calls",
    "ongoing": "mean number of requests that waited or ran",
    "wait_s": "mean seconds that requests waited",
    "p99_s": "seconds that 99 of 100 requests took at most",
}
_COUNTERS = {"ups": "times workers were added", "downs": "times workers were ended"}


def metrics(states: Sequence[ScalingState]) -> str:
    """All states in Prometheus' text format, version 0.0.4."""
    return "".join(f"{line}\n" for line in _lines(states))


def _lines(states: Sequence[ScalingState]) -> Iterator[str]:
    for kind, names in (("gauge", _GAUGES), ("counter", _COUNTERS)):
        for field, text in names.items():
            unit = field.replace("_s", "_seconds") if field.endswith("_s") else field
            name = f"marship_autoscale_{unit}" + ("_total" if kind == "counter" else "")
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} {kind}"
            for state in states:
                if (value := getattr(state, field)) is not None:
                    yield f"{name}{{{_labels(state)}}} {value:g}"
    yield "# HELP marship_autoscale_cause 1 for what decided the number of workers"
    yield "# TYPE marship_autoscale_cause gauge"
    for state in states:
        for cause in CAUSES:
            value = int(cause == state.cause)
            yield f'marship_autoscale_cause{{{_labels(state)},cause="{cause}"}} {value}'


def _labels(state: ScalingState) -> str:
    return f'model_name="{state.name}",model_version="{state.version}"'
