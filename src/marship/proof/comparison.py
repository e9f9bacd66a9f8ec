"""How far two ways to run one model are apart."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import isinf
from typing import Any

from marship.contract import Arrays

RunModel = Callable[[Arrays], Arrays]
"""One way to run a model: input arrays by name to output arrays by name."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two ways to run a model were apart on one case, and whether that is allowed."""

    kind: str
    sizes: Mapping[str, int]
    absolute: float
    relative: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class RowProof(Comparison):
    """What the proof came to.

    Attributes:
        reason: Why rows are not independent, or why that could not be shown; None where they
            are.
        sets: What was tried: names of sets of rows.
        largest_batch: Rows in the largest call.
        left_out: What was not tried, or is not counted, and why.
        seconds: How long it took.
    """

    reason: str | None = None
    sets: tuple[str, ...] = ()
    largest_batch: int = 0
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0

    def evidence(self) -> dict[str, Any]:
        """As an archive holds it: no infinity, which JSON has not, and no time, which varies."""
        facts = {k: v for k, v in asdict(self).items() if k != "seconds"}
        return facts | ({"absolute": None, "relative": None} if isinf(self.absolute) else {})

    def __str__(self) -> str:
        """What was found and what it cost, as one line."""
        if self.reason is not None:
            return f"requests run alone: {self.reason}"
        left = f"; left out: {'; '.join(self.left_out)}" if self.left_out else ""
        return (
            f"rows are independent: shown up to a batch of {self.largest_batch} "
            f"in {self.seconds:.1f} s{left}"
        )
