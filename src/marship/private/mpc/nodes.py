"""A model on its way to a program: operations with their weights, not yet shared."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from marship.errors import ModelError
from marship.serving.private.mpc.program import FACTOR_ERROR, RESCALED, Gathering, ProgramStep
from marship.serving.private.mpc.ring import FRACTION_BITS, LIMIT

Reals = npt.NDArray[np.float64]
Interval = tuple[Reals, Reals]
"""The smallest and the largest value of each element."""
_UNIT = 2.0**-FRACTION_BITS


@dataclass(eq=False)
class Node:
    """One operation: a `ProgramStep` whose inputs are nodes, with its weights.

    Attributes:
        name: The ONNX node's, for messages.
        weights: float64, of the shapes that `ProgramStep.weights` states.
    """

    name: str
    operation: str
    inputs: list["Node"]
    size: int
    window: Gathering | None = None
    positions: int = 1
    taps: int = 0
    is_channelled: bool = False
    weights: list[Reals] = field(default_factory=list)


def ordered(output: Node) -> list[Node]:
    """All nodes that an output depends on, the input first, each after its inputs."""
    found: list[Node] = []
    pending = [(output, False)]
    while pending:
        node, is_ready = pending.pop()
        if node in found:
            continue
        if is_ready:
            found.append(node)
        else:
            pending += [(node, True), *((one, False) for one in reversed(node.inputs))]
    return found


def tidied(output: Node) -> Node:
    """The same function with fewer operations: factors folded into products, pools before ReLUs."""
    nodes = ordered(output)
    uses: dict[int, int] = {}
    for node in nodes:
        for one in node.inputs:
            uses[id(one)] = uses.get(id(one), 0) + 1
    replaced: dict[int, Node] = {}
    for node in nodes:
        node.inputs = [replaced.get(id(one), one) for one in node.inputs]
        first = node.inputs[0] if node.inputs else None
        if first is None or uses.get(id(first), 0) > 1:
            continue
        if node.operation == "scale" and _fold(first, node):
            replaced[id(node)] = first
        elif node.operation == "maximum" and node.window and first.operation == "relu":
            # max(relu(x)) = relu(max(x)): fewer comparisons
            node.inputs = list(first.inputs)
            first.inputs, first.size = [node], node.size
            replaced[id(node)] = first
            uses[id(node)] = 1
        if id(node) in replaced:
            uses[id(replaced[id(node)])] = uses.get(id(node), 0)
    return replaced.get(id(output), output)


def _fold(linear: Node, scale: Node) -> bool:
    """Fold a factor and a bias into a product before them, if all its positions have the same."""
    if linear.operation != "linear":
        return False
    width = linear.size // linear.positions
    shape = (width, linear.positions) if linear.is_channelled else (linear.positions, width)
    factor, bias = (
        array.reshape(shape) if linear.is_channelled else array.reshape(shape).T
        for array in scale.weights
    )
    if np.ptp(factor, axis=1).any() or np.ptp(bias, axis=1).any():
        return False
    matrix, before = linear.weights
    linear.weights = [matrix * factor[:, 0], before * factor[:, 0] + bias[:, 0]]
    return True


def steps(nodes: Sequence[Node]) -> tuple[ProgramStep, ...]:
    """The program's steps of ordered nodes; the first is the input."""
    places = {id(node): place for place, node in enumerate(nodes)}
    return tuple(
        ProgramStep(
            node.operation,
            tuple(places[id(one)] for one in node.inputs),
            node.size,
            node.window,
            node.positions,
            node.taps,
            node.is_channelled,
        )
        for node in nodes[1:]
    )


def for_clients(nodes: list[Node]) -> tuple[float, list[Node]]:
    """A factor on the whole input, such as 1 / 255, and the other nodes.

    Clients multiply by it, which costs no messages; it is in their file.
    """
    given, first = nodes[:2]
    uses = sum(given in node.inputs for node in nodes)
    if first.operation != "scale" or uses > 1 or len(nodes) == 2:  # noqa: PLR2004  that is all
        return 1.0, nodes
    factor, bias = first.weights
    if bias.any() or np.ptp(factor) or not factor[0]:
        return 1.0, nodes
    for node in nodes[2:]:
        node.inputs = [given if one is first else one for one in node.inputs]
    return float(factor[0]), [given, *nodes[2:]]


def check_bounds(nodes: Sequence[Node], input_limit: float, factor: float = 1.0) -> None:
    """Prove that no value reaches the limit, whatever the input within its own.

    Intervals are followed from node to node, for weights and rescalings as parties round them: an
    upper bound that real inputs stay far below.

    Raises:
        ModelError: A value may reach it.
    """
    found: dict[int, Interval] = {}
    for node in nodes:
        given = [found[id(one)] for one in node.inputs]
        low, high = found[id(node)] = interval(node, given, input_limit * abs(factor))
        largest = max(np.abs(low).max(), np.abs(high).max())
        if not largest < LIMIT:
            raise ModelError(
                f"every value of a model of three parties must stay below {LIMIT:g} for inputs up "
                f"to {input_limit:g}, got up to {largest:.3g} at {node.name}. If inputs are "
                "smaller, package with --option input_limit=1; else scale them, or train with more "
                "weight decay."
            )


def interval(node: Node, given: Sequence[Interval], input_limit: float) -> Interval:
    """The smallest and largest value of each element of a node, given those of its inputs."""
    if node.operation == "input":
        return np.full(node.size, -input_limit - _UNIT), np.full(node.size, input_limit + _UNIT)
    low, high = _unrounded(node, given)
    if node.operation not in RESCALED:
        return low, high
    apart = np.full(node.size, _UNIT)
    if node.operation == "average":  # of its factor, and of up to three rescalings
        apart = FACTOR_ERROR * np.maximum(np.abs(low), np.abs(high)) + 4 * _UNIT
    return low - apart, high + apart


def _unrounded(node: Node, given: Sequence[Interval]) -> Interval:
    if node.window is None:
        return (
            _of_elements(node, given) if node.operation != "linear" else _products(node, given[0])
        )
    low, high = (_gathered(each, node.window) for each in given[0])
    if node.operation == "linear":
        return _products(node, (low, high))
    if node.operation == "maximum":
        return low.max(1), high.max(1)
    return low.min(1), high.max(1)


def _of_elements(node: Node, given: Sequence[Interval]) -> Interval:
    low, high = given[0]
    if node.operation == "relu":
        return np.maximum(low, 0), np.maximum(high, 0)
    if node.operation == "scale":
        factor, bias = map(_rounded, node.weights)
        ends = [low * factor + bias, high * factor + bias]
        return np.min(ends, 0), np.max(ends, 0)
    other = given[1]
    if node.operation == "sum":
        return low + other[0], high + other[1]
    if node.operation == "difference":
        return low - other[1], high - other[0]
    if node.operation == "maximum":
        return np.maximum(low, other[0]), np.maximum(high, other[1])
    ends = [a * b for a in given[0] for b in other]
    return np.min(ends, 0), np.max(ends, 0)


def _products(node: Node, windows: Sequence[Reals]) -> Interval:
    """Of `windows @ weights + bias`: the smaller ends where weights are negative."""
    matrix, bias = map(_rounded, node.weights)
    low, high = (each.reshape(node.positions, node.taps) for each in windows)
    up, down = np.maximum(matrix, 0), np.minimum(matrix, 0)
    ends = (low @ up + high @ down + bias, high @ up + low @ down + bias)
    if node.is_channelled:
        return ends[0].T.ravel(), ends[1].T.ravel()
    return ends[0].ravel(), ends[1].ravel()


def _rounded(weights: Reals) -> Reals:
    """As words hold them; not by way of words, which would wrap."""
    rounded: Reals = np.round(weights / _UNIT) * _UNIT
    return rounded


def _gathered(values: Reals, window: Gathering) -> Reals:
    return np.append(values, 0.0)[window.index]


def taps_of(window: Gathering) -> int:
    """Elements of each of a convolution's products."""
    return window.shape[0] * prod(window.kernel)
