"""Sizes that forward computes with floats, like int(n * 0.7), which the file does in float32.

Python uses float64: 90 * 0.7 is 62.99999999999999 there and 63 in float32, one more.
Both are computed for each size, with the operations of the traced graph.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy  # type: ignore[import-untyped]
import torch

from marship.exporting.guards import Guard, Place, is_own, sizes_in


@dataclass(frozen=True, slots=True)
class FloatGuard(Guard):
    """The condition that a size is the same in float32; the last of `steps` computes it."""

    steps: Sequence[torch.fx.Node]

    most_tried = 2048

    def holds(self, at: Mapping[sympy.Symbol, int]) -> bool:
        """Whether both give the same number, or both fail."""
        return bool(self._computed(at, single=False) == self._computed(at, single=True))

    def _computed(self, at: Mapping[sympy.Symbol, int], *, single: bool) -> Any:  # noqa: ANN401  a number
        whole = {symbol: sympy.Integer(size) for symbol, size in at.items()}
        known: dict[torch.fx.Node, Any] = {}
        try:
            for step in self.steps:
                value = step.meta["val"]
                if not _is_of_floats(step):
                    known[step] = int(value.node.expr.xreplace(whole))
                    continue
                args: list[Any] = [
                    known[arg] if isinstance(arg, torch.fx.Node) else arg for arg in step.args
                ]
                if single and isinstance(value, torch.SymFloat):
                    args = [np.float32(arg) for arg in args]
                    known[step] = np.float32(step.target(*args))  # type: ignore[operator]
                else:  # equal for a float32 and the float64 of the same value
                    args = [float(arg) if isinstance(arg, np.floating) else arg for arg in args]
                    known[step] = step.target(*args)  # type: ignore[operator]
        except (ArithmeticError, ValueError):  # such as a division by zero
            return None
        return known[self.steps[-1]]


def of_floats(graph: torch.fx.Graph) -> list[Guard]:
    """A guard for each integer that a decomposed graph computes from floats of sizes."""
    found: list[Guard] = []
    for node in graph.nodes:
        value = node.meta.get("val")
        if not (isinstance(value, torch.SymInt) and _is_of_floats(node)):
            continue
        steps = _steps(node)
        condition = value.node.expr
        sizes = sizes_in(value.node.shape_env, condition)
        if steps and len(sizes) == len(condition.free_symbols):
            found.append(FloatGuard(condition, sizes, _place(node), steps))
    return found


def _is_of_floats(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, torch.SymFloat):
        return True
    return isinstance(value, torch.SymInt) and any(map(_is_of_floats, node.all_input_nodes))


def _steps(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The node and its inputs, down to integers."""
    if not _is_of_floats(node):
        return [node]
    before = [step for source in node.all_input_nodes for step in _steps(source)]
    return [*dict.fromkeys(before), node]


def _place(node: torch.fx.Node) -> Place | None:
    stack = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [Place(file, int(line)) for file, line in stack if is_own(file)]
    return own[-1] if own else None
