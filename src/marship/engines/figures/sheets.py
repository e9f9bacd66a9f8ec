"""The sheets of all workers, added up for each version."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from marship.engines.figures.families import Page
from marship.serving.sheet import Labels, Reading, Series

Sums = dict[tuple[str, Labels], tuple[Series, list[float]]]
_OF_NONE = {"model_name": "", "model_version": ""}
FAULTS = ("no_answer", "no_worker", "response_timeout", "scaled_to_zero", "worker_died")
"""Codes that an acceptor gives for a server's faults."""
CAUSES = ("signal", "exit", "memory", "timeout", "unknown")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def add_up(readings: Iterable[Reading]) -> dict[tuple[str, str], Sums]:
    """The series of each version; of gauges the largest that a living worker has.

    A sheet without a model has that among its labels: an acceptor counts for all.
    """
    found: dict[tuple[str, str], Sums] = {}
    for reading in readings:
        for series, values in reading.series:
            if series.kind == "gauge" and not reading.pid:
                continue
            labels = {**_OF_NONE, **dict(series.labels)}
            named = labels.pop("model_name"), labels.pop("model_version")
            own = tuple(labels.items())
            sums = found.setdefault(
                (reading.model, reading.version) if reading.model else named, {}
            )
            held = sums.setdefault((series.name, own), (series, [0.0] * len(values)))
            if held[0].bounds != series.bounds:
                continue  # another version of marship wrote it, of an archive with the same name
            join = max if series.kind == "gauge" else float.__add__
            held[1][:] = map(join, held[1], values)
    return found


def add_to(page: Page, readings: Iterable[Reading], is_shown: Callable[[str, str], bool]) -> None:
    """Show what the workers counted.

    Args:
        page: Gets it.
        readings: All sheets.
        is_shown: Whether a version is: not those that are gone.
    """
    readings = list(readings)
    for (model, version), sums in add_up(readings).items():
        if model and not is_shown(model, version):
            continue
        labels = {"model_name": model, "model_version": version} if model else {}
        for (name, own), (series, values) in sums.items():
            page.family(name, series.kind).add_series({**labels, **dict(own)}, series, values)
    for reading in readings:
        page.counted.add((reading.model, reading.version))
        if reading.pid and reading.model and is_shown(reading.model, reading.version):
            page.family("marship_worker_resident_memory_bytes", "gauge").add(
                {
                    "model_name": reading.model,
                    "model_version": reading.version,
                    "worker": str(reading.number),
                },
                resident_bytes(reading.pid),
            )


def begin(page: Page, versions: Iterable[tuple[str, str]]) -> None:
    """Show that no worker has died of what none has died of yet, and no request failed for it."""
    deaths = page.family("marship_worker_deaths_total", "counter")
    errors = page.family("marship_errors_total", "counter")
    for model, version in versions:
        labels = {"model_name": model, "model_version": version}
        for cause in CAUSES:
            deaths.begin({**labels, "cause": cause})
        for code in FAULTS:
            errors.begin({**labels, "code": code})


def resident_bytes(pid: int) -> int:
    """The memory of a process (proc(5), statm); 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
