"""An ONNX graph as affine maps with powers between them, or which node cannot be.

Encrypted values can be added, multiplied by constants, and multiplied with each other a few times.
The graph is cut where values go through a polynomial: what lies between is affine. A polynomial is
brought to a form that costs least: a x^2 + b x + c is a (x + b/2a)^2 and a constant, of which the
shift goes into the map before, and factor and constant into the map behind it. A cubic becomes
u (u^2 + p) likewise (Cardano's depressed cubic).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from marship.errors import ModelError
from marship.private.segments import DEGREE, SHAPES, Matrix, SegmentedGraph
from marship.serving.private.plan import INPUT, Affine, Power, Step

_SQUARE, _CUBE = 2, 3

AFFINE = {
    *("Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Constant", "Conv", "Div"),
    *("Dropout", "Expand", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "Identity", "MatMul"),
    *("Mul", "Neg", "Pad", "ReduceMean", "ReduceSum", "Reshape", "Shape", "Slice", "Split", "Sub"),
    *("Squeeze", "Sum", "Transpose", "Unsqueeze", "ConvTranspose"),
}
"""Operators that are affine in one input with the others constant, or in all of `_SUMS`."""
_SUMS = {"Add", "Sub", "Sum", "Concat"}
_EACH = {"Add", "Sub", "Mul", "Div", "Neg", "Identity", "Dropout", "Sum", "Pow"}
"""Operators on each value by itself, of which polynomials are made."""
_SQUARES = "Train with --activation square."
_CLIENT = "Leave it out of the model: the client computes it from what it decrypts."
_BEFORE = "Or let clients compute all up to there, and encrypt from there on: --private-from."

ADVICE = {
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Elu", "Gelu", "Erf", "Tanh", "HardSwish",
                     "HardSigmoid", "Softplus", "Celu", "Selu", "Mish"), _SQUARES),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Sigmoid", "ArgMax", "TopK", "Exp"), _CLIENT),
    "MaxPool": "Use AveragePool.",
    "GlobalMaxPool": "Use GlobalAveragePool.",
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization",
                     "RMSNormalization"), "Use batch norm, whose figures are fixed."),
    "Attention": "Attention multiplies values with each other in too many ways: serve such a "
    "model open or sealed.",
}  # fmt: skip
"""What to do about operators that cannot be encrypted."""
_OTHERWISE = "Sums, products with constants, squares and cubes can be encrypted."


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor as a polynomial of another one, value by value."""

    base: str
    degree: int = 1


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where values go through a polynomial: from the tensor `base` to the tensor `target`."""

    base: str
    target: str


@dataclass
class _Walk:
    """What is known of the tensors while the graph is walked through."""

    graph: SegmentedGraph
    values: dict[str, _Value]
    cuts: dict[str, _Cut] = field(default_factory=dict)

    def take(self, node: onnx.NodeProto) -> None:
        """Note what a node's outputs are.

        Raises:
            ModelError: It cannot be computed on encrypted values.
        """
        if open_names := [name for name in node.input if name in self.graph.outside]:
            raise ModelError(
                f"node {node.name or node.output[0]} must depend on {self.graph.input} alone, got "
                f"{open_names[0]}, too. Encrypt from a later tensor on."
            )
        moving = [name for name in node.input if name in self.values]
        if not moving or node.op_type in SHAPES:
            return
        if node.op_type in _EACH and (value := self._by_value(node, moving)) is not None:
            self.values[node.output[0]] = value
            return
        if node.op_type not in AFFINE or (len(moving) > 1 and node.op_type not in _SUMS):
            raise _refused(node)
        if node.op_type == "Div" and node.input[0] not in moving:
            raise _refused(node)
        for name in moving:
            self.cut(name)
        self.values |= {name: _Value(name) for name in node.output if name}

    def cut(self, name: str) -> None:
        """End a polynomial at a tensor, which is a value of its own from here on."""
        value = self.values[name]
        if value.degree > 1:
            self.cuts[name] = _Cut(value.base, name)
            self.values[name] = _Value(name)

    def _by_value(self, node: onnx.NodeProto, moving: Sequence[str]) -> _Value | None:
        """The node's output as a polynomial, if it is one of a single tensor."""
        power = self._power(node)
        if power is not None:
            moving = [node.input[0]] * power
        if node.op_type == "Div" and node.input[0] not in moving:
            return None
        multiplies = power is not None or node.op_type == "Mul"
        for _ in range(2):  # once more behind a cut
            values = [self.values[name] for name in moving]
            degree = (sum if multiplies else max)(value.degree for value in values)
            is_one = len({value.base for value in values}) == 1
            if is_one and degree <= DEGREE and self._has_shape(node, values[0].base):
                return _Value(values[0].base, degree)
            if len(set(moving)) > 1 or degree <= DEGREE:
                break
            self.cut(moving[0])
        return None

    def _power(self, node: onnx.NodeProto) -> int | None:
        """The exponent of a node Pow.

        Raises:
            ModelError: It is not 1, 2 or 3.
        """
        if node.op_type != "Pow":
            return None
        exponent = self.graph.constants.get(node.input[1])
        if exponent is None or exponent.size != 1 or exponent.item() not in (1, _SQUARE, _CUBE):
            raise _refused(node)
        return int(exponent.item())

    def _has_shape(self, node: onnx.NodeProto, base: str) -> bool:
        shapes = self.graph.shapes
        return shapes[node.output[0]] == shapes[base]


@dataclass(frozen=True, slots=True)
class Compilation:
    """A graph as steps.

    Attributes:
        steps: Those of a plan.
        given: The shape of a row of the input.
        made: The shape that the first step's result has in the graph.
        constants: Outputs that depend on no input, with their values.
        names: Of each step, the tensor of the graph that it leads to.
    """

    steps: tuple[Step, ...]
    given: tuple[int, ...]
    made: tuple[int, ...]
    constants: tuple[tuple[int, float], ...] = ()
    names: tuple[str, ...] = ()


def compiled(graph: SegmentedGraph) -> Compilation:
    """Cut a graph, and make steps of it.

    Raises:
        ModelError: A node cannot be computed on encrypted values; the message says what to do.
    """
    walk = _Walk(graph, {graph.input: _Value(graph.input)})
    for node in graph.nodes:
        walk.take(node)
    if graph.output not in walk.values:
        raise ModelError("an encrypted model must depend on its input, got a constant.")
    walk.cut(graph.output)
    first = next((cut.base for cut in walk.cuts.values()), graph.output)
    steps, constants = _without_constants(_Assembly(graph, walk.cuts).steps())
    leads = [name for cut in walk.cuts.values() for name in (cut.base, cut.target)]
    names = (*leads, graph.output)
    return Compilation(steps, graph.shapes[graph.input], graph.shapes[first], constants, names)


def _without_constants(
    steps: tuple[Step, ...],
) -> tuple[tuple[Step, ...], tuple[tuple[int, float], ...]]:
    """The steps with zero for outputs that depend on no input, and those by their place.

    What is -1e4 for all inputs would cost all of them bits.
    """
    last = steps[-1]
    if not isinstance(last, Affine):
        return steps, ()
    depends = np.any([matrix.any(axis=1) for matrix in last.matrices.values()], axis=0)
    constants = tuple((int(place), float(last.bias[place])) for place in np.flatnonzero(~depends))
    return (*steps[:-1], Affine(last.matrices, last.bias * depends)), constants


@dataclass(frozen=True, slots=True)
class _Form:
    """A polynomial as `factor * u^2 + constant`, or u (u^2 + p) + constant, of u = k (x + shift).

    All are float64 (size,); `linear` is p, None for a square.
    """

    shift: Matrix
    stretch: Matrix
    factor: Matrix
    constant: Matrix
    linear: Matrix | None = None


@dataclass
class _Assembly:
    """Makes steps of the cuts."""

    graph: SegmentedGraph
    cuts: Mapping[str, _Cut]
    registers: dict[str, int] = field(default_factory=dict)
    forms: dict[str, _Form] = field(default_factory=dict)
    made: list[Step] = field(default_factory=list)

    def steps(self) -> tuple[Step, ...]:
        self.registers[self.graph.input] = INPUT
        for cut in self.cuts.values():  # in the graph's order
            form = _formed(self.graph.polynomial(cut.base, cut.target), cut)
            before = self._affine(cut.base)
            matrices = {r: form.stretch[:, None] * m for r, m in before.matrices.items()}
            self._add(Affine(matrices, form.stretch * (before.bias + form.shift)))
            self._add(Power(len(self.made), form.linear))
            self.registers[cut.target] = len(self.made)
            self.forms[cut.target] = form
        self._add(self._affine(self.graph.output))
        return tuple(self.made)

    def _add(self, step: Step) -> None:
        self.made.append(step)

    def _affine(self, target: str) -> Affine:
        """What leads to a tensor from registers, with the factors and constants of their powers."""
        sources = self._sources(target)
        found, bias = self.graph.affine(sources, target)
        matrices = {}
        for name in sources:
            matrix = found[name]
            if (form := self.forms.get(name)) is not None:
                bias = bias + matrix @ form.constant
                matrix = matrix * form.factor
            if matrix.any():
                matrices[self.registers[name]] = matrix
        if not matrices:
            raise ModelError(f"{target} must depend on the input, got zero for all weights.")
        return Affine(matrices, bias)

    def _sources(self, target: str) -> list[str]:
        """The tensors with registers that lead to another tensor, nearest cuts only."""
        makers = {name: node for node in self.graph.model.graph.node for name in node.output}
        found, seen, waiting = [], set(), [target]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.registers:
                found.append(name)
            elif name in makers and makers[name].op_type not in SHAPES:
                waiting += makers[name].input
        return sorted(found, key=self.registers.__getitem__)


def _formed(coefficients: Matrix, cut: _Cut) -> _Form:
    """A polynomial, by its coefficients (4, size), in the form that costs least.

    Raises:
        ModelError: Some values have a square or a cube, and others have none.
    """
    zeroth, first, second, third = coefficients
    is_cubic = bool(third.any())
    leading = third if is_cubic else second
    is_constant = ~coefficients[1:].any(axis=0)
    if not (leading.astype(bool) | is_constant).all():
        raise ModelError(
            f"{cut.target} must have the same degree for all its values, got a polynomial that "
            "lacks it for some. Use one activation for all values of a layer."
        )
    if not is_cubic:
        shift = first / (2 * np.where(is_constant, 1.0, leading))
        return _Form(shift, np.ones_like(shift), second, zeroth - second * shift**2)
    if is_constant.any():
        raise ModelError(
            f"{cut.target} must have a cube for all its values, got none for some. Use one "
            "activation for all values of a layer."
        )
    shift, stretch = second / (3 * third), np.cbrt(third)
    linear = (first - second**2 / (3 * third)) / stretch
    constant = 2 * second**3 / (27 * third**2) - first * second / (3 * third) + zeroth
    return _Form(shift, stretch, np.ones_like(shift), constant, linear)


def _refused(node: onnx.NodeProto) -> ModelError:
    name = node.name or node.output[0]
    advice = ADVICE.get(node.op_type, _OTHERWISE)
    return ModelError(
        f"node {name} must be computable on encrypted values, got {node.op_type}. {advice} "
        f"{_BEFORE}"
    )
