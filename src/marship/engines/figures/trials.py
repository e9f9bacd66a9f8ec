"""Trials that run, on a page for Prometheus."""

from collections.abc import Iterable, Iterator

from marship.engines.figures.families import Page
from marship.engines.trials import TrialState

_COUNTS = {
    "marship_trial_requests_total": "taken",
    "marship_trial_compared_total": "compared",
    "marship_trial_differences_total": "differing",
    "marship_trial_dropped_total": "dropped",
}
"""Counters, and where their values are among the figures."""


def add_trials(page: Page, states: Iterable[TrialState]) -> None:
    """Add what `samples` has to a page."""
    for name, labels, value in samples(states):
        kind = "counter" if name.endswith("_total") else "gauge"
        page.family(name, kind).add(labels, value)


def samples(states: Iterable[TrialState]) -> Iterator[tuple[str, dict[str, str], float]]:
    """Each metric's name, labels and value; the version is the new one."""
    for one in states:
        order = one.order
        labels = {"model_name": order.model, "model_version": order.version}
        labels["kind"] = "canary" if order.gives_new else "shadow"
        yield "marship_trial_share", labels, order.share
        for name, field in _COUNTS.items():
            yield name, labels, getattr(one.figures, field)
        for arm, figures in (("default", one.figures.default), ("new", one.figures.new)):
            yield "marship_trial_errors_total", {**labels, "arm": arm}, figures.errors
