"""Trials of new versions, as clients of an engine order and see them."""

from collections.abc import Iterable, Mapping
from typing import Any

from marship.errors import ServerError
from marship.serving.hosts.direct.outcome import TOOK_S, Arm, TrialFigures, added
from marship.serving.hosts.direct.trial import LEASE_S, TrialOrder, TrialState

__all__ = [
    "LEASE_S",
    "TOOK_S",
    "Arm",
    "TrialFigures",
    "TrialOrder",
    "TrialState",
    "added",
    "figures_of",
    "merged",
]


def figures_of(answers: Iterable[Mapping[str, Any]]) -> list[TrialFigures]:
    """What each process that takes part in a trial has told; none of those that know no models yet.

    Raises:
        ServerError: One refuses the trial; the message says why.
    """
    found = []
    for answer in answers:
        if refused := answer.get("refused"):
            raise ServerError(refused)
        if "figures" in answer:
            found.append(TrialFigures.from_json(answer["figures"]))
    return found


def merged(states: Iterable[TrialState]) -> list[TrialState]:
    """Trials, each with the figures of all processes that take part in it."""
    parts: dict[TrialOrder, list[TrialFigures]] = {}
    for state in states:
        parts.setdefault(state.order, []).append(state.figures)
    return [TrialState(order, added(figures)) for order, figures in parts.items()]
