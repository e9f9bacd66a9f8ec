"""How far two ways to run one model are apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from marship.contract import Arrays

Run = Callable[[Arrays], Arrays]
"""One way to run a model: input arrays by name to output arrays by name."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two ways to run a model were apart on one case, and whether that is allowed."""

    kind: str
    sizes: Mapping[str, int]
    absolute: float
    relative: float
    agrees: bool
