"""What the workers of a host have counted, as a page for Prometheus.

The form is the text format 0.0.4 of Prometheus (Exposition formats). Counters of all workers of a
model are added up, and stay when a worker is replaced.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUSY = "marship_busy_share"
_WINDOW_S = 30.0
_STEPS = tuple(f"marship_{step}_seconds_total" for step in ("decode", "infer", "encode"))
_HELP = {
    BUSY: f"share of the last {_WINDOW_S:g} seconds in which workers had a batch, 0 to 1",
    "marship_workers": "workers that have replayed the golden cases and serve",
    "marship_workers_wanted": "workers that there should be",
    "marship_worker_starts_total": "worker processes that were started",
    "marship_connections": "clients that are connected",
}


@dataclass
class ModelFigures:
    """One model's.

    Attributes:
        name: The model's name.
        version: Its version.
        wanted: How many workers it should have.
        ready: How many serve.
        starts: How many were started.
    """

    name: str
    version: str
    wanted: int
    ready: int = 0
    starts: int = 0
    _counts: "Counter[tuple[str, str]]" = field(default_factory=Counter)
    _gauges: dict[str, float] = field(default_factory=dict)
    _past: "deque[tuple[float, float]]" = field(default_factory=deque)

    def add(self, report: Mapping[str, Any], now: float | None = None) -> None:
        """Add a worker's report; see `serving.hosts.direct.entry`."""
        for name, code, value in report["counts"]:
            self._counts[name, code] += value
        self._gauges |= dict(report["gauges"])
        now = time.monotonic() if now is None else now
        self._past.append((now, self._worked_s))
        while now - self._past[0][0] > _WINDOW_S:
            self._past.popleft()

    @property
    def _worked_s(self) -> float:
        return sum(self._counts[step, ""] for step in _STEPS)

    @property
    def busy(self) -> float:
        """The share of the last seconds in which its workers had a batch."""
        if not self._past:
            return 0.0
        (began, before), (ended, after) = self._past[0], self._past[-1]
        available_s = (ended - began) * self.wanted
        return min(1.0, (after - before) / available_s) if available_s else 0.0

    def samples(self) -> Iterator[tuple[str, str, float]]:
        """Name, labels and value of each metric."""
        labels = f'model_name="{_escaped(self.name)}",model_version="{_escaped(self.version)}"'
        yield BUSY, labels, round(self.busy, 4)
        yield "marship_workers", labels, self.ready
        yield "marship_workers_wanted", labels, self.wanted
        yield "marship_worker_starts_total", labels, self.starts
        for (name, code), count in sorted(self._counts.items()):
            yield name, f'{labels},code="{_escaped(code)}"' if code else labels, count
        for name, gauge in sorted(self._gauges.items()):
            yield name, labels, gauge


def page(models: Iterable[ModelFigures], connections: int) -> bytes:
    """The page of all models."""
    families: dict[str, list[str]] = {}
    samples: list[tuple[str, str, float]] = [
        *(sample for model in models for sample in model.samples()),
        ("marship_connections", "", connections),
    ]
    for name, labels, value in samples:
        shown = f"{name}{{{labels}}}" if labels else name
        families.setdefault(name, []).append(f"{shown} {value!r}")
    lines: list[str] = []
    for name, rows in families.items():
        if name in _HELP:
            lines.append(f"# HELP {name} {_HELP[name]}")
        lines.append(f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}")
        lines += rows
    return ("\n".join(lines) + "\n").encode()


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
