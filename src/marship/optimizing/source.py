"""The input of every optimization pass, and the error if it cannot build a variant."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from marship.contract import Arrays, Contract
from marship.errors import ModelError


class NotBuiltError(ModelError):
    """A variant cannot be built from this model, on this machine, or from this data."""

    code = "not_built"


def _ignore(_: str) -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The accuracy goal of passes that search for a smaller loss.

    Attributes:
        quality: The recipe's metric of outputs for calibration rows with targets; greater is
            better.
        budget: The largest allowed drop.
        limit_s: Time budget of the search in seconds.
    """

    quality: Callable[[Arrays, Arrays], float]
    budget: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """The exported model.

    Attributes:
        path: Its ONNX file, float32.
        contract: Its contract.
        calibration: Training inputs by name, with rows as first axis; None without any.
        goal: None if the calibration rows have no targets, or there is no judge.
        report: Takes a line about a pass's progress.
    """

    path: Path
    contract: Contract
    calibration: Arrays | None
    goal: Goal | None = None
    report: Callable[[str], None] = _ignore

    @property
    def has_outside_weights(self) -> bool:
        """Whether weights are external, so that a variant's must be, too."""
        return len(self.contract.files) > 1
