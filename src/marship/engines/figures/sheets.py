"""The sheets of all workers, added up for each version."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from marship.engines.figures.families import Page
from marship.serving.sheet import Labels, Reading, Series

Sums = dict[tuple[str, Labels], tuple[Series, list[float]]]
CAUSES = ("signal", "exit", "memory", "timeout", "unknown")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def add_up(readings: Iterable[Reading]) -> dict[tuple[str, str], Sums]:
    """The series of each version; of gauges the largest that a living worker has."""
    found: dict[tuple[str, str], Sums] = {}
    for reading in readings:
        sums = found.setdefault((reading.model, reading.version), {})
        for series, values in reading.series:
            if series.kind == "gauge" and not reading.pid:
                continue
            held = sums.setdefault((series.name, series.labels), (series, [0.0] * len(values)))
            if held[0].bounds != series.bounds:
                continue  # another version of marship wrote it, of an archive with the same name
            join = max if series.kind == "gauge" else float.__add__
            held[1][:] = map(join, held[1], values)
    return found


def add_to(page: Page, readings: Iterable[Reading], is_shown: Callable[[str, str], bool]) -> None:
    """Show what the workers counted.

    Args:
        page: Gets it.
        readings: All sheets; one without a model has all labels itself.
        is_shown: Whether a version is: not those that are gone.
    """
    readings = list(readings)
    for (model, version), sums in add_up(readings).items():
        if model and not is_shown(model, version):
            continue
        labels = {"model_name": model, "model_version": version} if model else {}
        for series, values in sums.values():
            own = dict(series.labels)
            if not model and not is_shown(own.get("model_name", ""), own.get("model_version", "")):
                continue
            page.family(series.name, series.kind).add_series({**labels, **own}, series, values)
    for reading in readings:
        if reading.pid and reading.model and is_shown(reading.model, reading.version):
            page.family("marship_worker_resident_memory_bytes", "gauge").add(
                {
                    "model_name": reading.model,
                    "model_version": reading.version,
                    "worker": str(reading.number),
                },
                resident_bytes(reading.pid),
            )


def begin_deaths(page: Page, versions: Iterable[tuple[str, str]]) -> None:
    """Show that no worker has died of what none has died of yet."""
    family = page.family("marship_worker_deaths_total", "counter")
    for model, version in versions:
        for cause in CAUSES:
            family.begin({"model_name": model, "model_version": version, "cause": cause})


def resident_bytes(pid: int) -> int:
    """The memory of a process (proc(5), statm); 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
