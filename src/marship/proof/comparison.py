"""Results of comparing two ways to run one model."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import isinf
from typing import Any

from marship.contract import Arrays

RunModel = Callable[[Arrays], Arrays]
"""A function that runs a model: input arrays by name to output arrays by name."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference of two runs on one case, and whether it is within the tolerance."""

    kind: str
    sizes: Mapping[str, int]
    absolute: float
    relative: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class RowProof(Comparison):
    """The result of the proof of independent rows.

    Attributes:
        reason: Why rows are not independent, or why that could not be shown; None if they are.
        sets: The names of the sets of rows that were tried.
        largest_batch: Rows in the largest call.
        left_out: What was not tried, or is not counted, and why.
        seconds: The time it took.
    """

    reason: str | None = None
    sets: tuple[str, ...] = ()
    largest_batch: int = 0
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0

    def evidence(self) -> dict[str, Any]:
        """The entry for an archive: without infinity, which JSON lacks, and without the time."""
        facts = {k: v for k, v in asdict(self).items() if k != "seconds"}
        return facts | ({"absolute": None, "relative": None} if isinf(self.absolute) else {})

    def __str__(self) -> str:
        """The result and the time it took, as one line."""
        if self.reason is not None:
            return f"requests run alone: {self.reason}"
        left = f"; left out: {'; '.join(self.left_out)}" if self.left_out else ""
        return (
            f"rows are independent: shown up to a batch of {self.largest_batch} "
            f"in {self.seconds:.1f} s{left}"
        )
