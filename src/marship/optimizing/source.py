"""What every pass starts from, and how it says that it cannot be."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from marship.contract import Arrays, Contract
from marship.errors import ModelError


class NotBuiltError(ModelError):
    """A variant cannot be made from this model, on this machine, or from this data."""

    code = "not_built"


def _ignore(_: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a pass may lose, for those that look for a way to lose less.

    Attributes:
        quality: The recipe's metric of answers to calibration rows, those with their targets;
            greater is better.
        budget: By how much it may fall.
        limit_s: Seconds for the search.
    """

    quality: Callable[[Arrays, Arrays], float]
    budget: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """The exported model.

    Attributes:
        path: Its ONNX file, float32.
        contract: What it takes and gives.
        calibration: Training inputs by name, the first axis being rows; None where there are
            none.
        goal: None where the calibration rows have no targets, or nothing judges.
        tell: Takes a line about how far a pass is.
    """

    path: Path
    contract: Contract
    calibration: Arrays | None
    goal: Goal | None = None
    report: Callable[[str], None] = _ignore

    @property
    def has_outside_weights(self) -> bool:
        """Whether weights lie beside the file, so that a variant's must, too."""
        return len(self.contract.files) > 1
