"""What the workers of a host have counted, as a page for Prometheus.

Counters of all workers of a model are added up, and stay when a worker is replaced.
"""

import time
from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from marship.engines.figures import sheets
from marship.engines.figures.families import Page
from marship.serving.hosts.direct.seats import Staff
from marship.serving.sheet import Reading, Series

BUSY = "marship_busy_share"
_WINDOW_S = 30.0
_STEPS = tuple(f"marship_{step}_seconds_total" for step in ("decode", "infer", "encode"))


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
    def named(self) -> tuple[str, str]:
        """Model and version."""
        return self.name, self.version

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

    def add_to(self, page: Page, named: Container[str]) -> None:
        """Show it, but counters.

        Args:
            page: Gets it.
            named: Metrics that the workers' sheets have; those of archives of earlier versions of
                marship only report them.
        """
        labels = {"model_name": self.name, "model_version": self.version}
        page.family(BUSY, "gauge").add(labels, round(self.busy, 4))
        page.family("marship_workers", "gauge").add(labels, self.ready)
        page.family("marship_workers_wanted", "gauge").add(labels, self.wanted)
        page.family("marship_worker_starts_total", "counter").add(labels, self.starts)
        for name, gauge in sorted(self._gauges.items()):
            if name not in named:
                page.family(name, "gauge").add(labels, gauge)

    def reported(self, named: Container[str]) -> Reading:
        """Counters that the workers' sheets do not have, as one that has them."""
        found = [
            (Series(name, "counter", (("code", code),) if code else (), (), 0), (float(count),))
            for (name, code), count in sorted(self._counts.items())
            if name not in named
        ]
        return Reading(self.name, self.version, -1, 0, tuple(found))


def page(
    models: Iterable[ModelFigures],
    connections: int,
    ongoing: Iterable[Staff] = (),
    readings: Iterable[Reading] = (),
) -> bytes:
    """The page of all models.

    Args:
        models: What each has.
        connections: How many clients are connected.
        ongoing: What workers have in hand.
        readings: What they counted.
    """
    made, counted, models = Page(), list(readings), list(models)
    readings = list(counted)
    for model in models:
        held = [each for each in counted if (each.model, each.version) == model.named]
        named = {series.name for each in held for series, _ in each.series}
        model.add_to(made, named)
        readings.append(model.reported(named))
    for staff in ongoing:
        of = {"model_name": staff.model, "model_version": staff.version}
        made.family("marship_requests_in_flight", "gauge").add(of, staff.ongoing)
    made.family("marship_connections", "gauge").add({}, connections)
    sheets.add_to(made, readings, lambda *named: named in {model.named for model in models})
    sheets.begin(made, [model.named for model in models])
    return made.render()
