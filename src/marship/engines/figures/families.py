"""Metrics in Prometheus' text format (Exposition formats, 0.0.4), written and read."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from marship.serving.sheet import Series

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HELP = {
    "marship_requests_total": "requests that a batch had",
    "marship_batches_total": "batches",
    "marship_decode_seconds_total": "seconds in which batches were decoded",
    "marship_infer_seconds_total": "seconds in calls of the model",
    "marship_encode_seconds_total": "seconds in which responses were encoded",
    "marship_errors_total": "responses that are errors, by their code",
    "marship_rechecks_total": "rows of batches that were run again alone",
    "marship_recheck_differences_total": "rows that differed when they were run again alone",
    "marship_joining_ended": "1 if requests are no longer batched, as rows were not independent",
    "marship_golden_drift_ratio": "largest difference of golden outputs / tolerance",
    "marship_batch_size": "requests of a batch",
    "marship_request_queue_seconds": "time of a request in the queue of a worker",
    "marship_request_decode_seconds": "time in which the batch of a request was decoded",
    "marship_request_infer_seconds": "time in which the model ran for the batch of a request",
    "marship_request_encode_seconds": "time in which the batch of a request was encoded",
    "marship_request_duration_seconds": "time of a request in a worker, from its last byte on",
    "marship_requests_in_flight": "requests that wait or run at workers now",
    "marship_workers": "workers that have replayed the golden cases and serve",
    "marship_workers_wanted": "workers that there should be",
    "marship_worker_starts_total": "worker processes that were started",
    "marship_worker_deaths_total": "workers that ended and should not have, by cause",
    "marship_worker_resident_memory_bytes": "memory of a worker, with what it shares with others",
    "marship_connections": "clients that are connected",
    "marship_trial_share": "share of requests that a new version on trial gets",
    "marship_trial_requests_total": "requests in the share of a trial",
    "marship_trial_compared_total": "pairs of responses of a trial that were compared",
    "marship_trial_differences_total": "pairs that differ by more than the tolerance",
    "marship_trial_dropped_total": "second requests of a trial that were not sent",
    "marship_trial_errors_total": "errors in the share of a trial, by the version's part",
    "marship_busy_share": "share of the last 30 seconds in which workers had a batch, 0 to 1",
}
_LINE = re.compile(r"(\w+)(\{.*\})? \S+.*")
_TYPE = re.compile(r"# TYPE (\w+) (\w+)")
_HELP = re.compile(r"# HELP (\w+) (.*)")
_INNER = re.compile(r"_(?:bucket|sum|count)$")

Labels = Mapping[str, str]


@dataclass(slots=True)
class Family:
    """All samples of one metric.

    Attributes:
        name: The metric's.
        kind: counter, gauge or histogram.
        help: What it is, in one line.
        lines: The samples.
    """

    name: str
    kind: str
    help: str
    lines: list[str] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def add(self, labels: Labels, value: float, inner: str = "") -> None:
        """Add a sample."""
        named = self._named(labels, inner)
        self._names.add(named)
        self.lines.append(f"{named} {_number(value)}")

    def begin(self, labels: Labels) -> None:
        """Add a counter that has counted nothing, unless it is there.

        Prometheus takes the first value that it sees for where a counter began: one that appears
        as 1 has not increased.
        """
        if self._named(labels) not in self._names:
            self.add(labels, 0.0)

    def _named(self, labels: Labels, inner: str = "") -> str:
        shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
        return f"{self.name}{inner}{f'{{{shown}}}' if shown else ''}"

    def add_series(self, labels: Labels, series: Series, values: Iterable[float]) -> None:
        """Add a counter or a gauge, or a histogram with its buckets cumulated."""
        found = list(values)
        if series.kind != "histogram":
            self.add(labels, found[0])
            return
        seen = 0.0
        bounds = (*(_number(bound) for bound in series.bounds), "+Inf")
        for bound, count in zip(bounds, found[:-1], strict=True):
            seen += count
            self.add({**labels, "le": bound}, seen, "_bucket")
        self.add(labels, found[-1], "_sum")
        self.add(labels, seen, "_count")


class Page:
    """Families by name.

    Attributes:
        counted: Versions whose workers count in sheets, those among them that are not shown.
    """

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}
        self.counted: set[tuple[str, str]] = set()

    def family(self, name: str, kind: str) -> Family:
        """One of our own."""
        if (found := self.families.get(name)) is None:
            found = self.families[name] = Family(name, kind, HELP.get(name, name))
        return found

    def render(self) -> bytes:
        """The text."""
        lines: list[str] = []
        for name, one in self.families.items():
            if one.lines:
                lines += [f"# HELP {name} {one.help}", f"# TYPE {name} {one.kind}", *one.lines]
        return ("\n".join(lines) + "\n").encode()


def read(text: str) -> Iterator[Family]:
    """The families of another page."""
    family: Family | None = None
    helps: dict[str, str] = {}
    for line in text.splitlines():
        if match := _HELP.fullmatch(line):
            helps[match[1]] = match[2]
        elif match := _TYPE.fullmatch(line):
            if family is not None:
                yield family
            family = Family(match[1], match[2], helps.get(match[1], match[1]))
        elif family is not None and (match := _LINE.fullmatch(line)):
            inner = _INNER.sub("", match[1])
            family.lines += [line] * (family.name in (match[1], inner))
    if family is not None:
        yield family


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return repr(value)
