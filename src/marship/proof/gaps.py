"""Traces which columns of an input may hold gaps, as NaN: those that operators ask for NaN.

A column is a place along the input's last axis. One that is asked for NaN by one operator, and
hidden by another on the way from the input to it, does not take gaps: the value would be wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from marship.contract import Array, TensorSpec

Columns = tuple[int, ...] | frozenset[int]
"""The input's columns whose gaps a tensor has: those along its last axis in order, or somewhere."""

_UNARY = {"Abs", "Cast", "CastLike", "Exp", "Identity", "Imputer", "Neg", "Scaler"}
_BINARY = {"Add", "Div", "Mul", "Sub"}
_MIXING = {"FeatureVectorizer", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_PICKING = {"ArrayFeatureExtractor", "Gather", "Slice"}
"""Operators that hand NaN on, with Concat and Split, and make none of numbers.

Behind a Log, or a division by the input's values, an Imputer is there for the graph's own NaN:
skl2onnx writes PowerTransformer so. A Cast to integers hides NaN.
"""
_HIDING = {"ArgMax", "ArgMin"}
_TREES = {"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}
_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
_CUTS = ("starts", "ends", "axes", "steps")
"""The inputs of Slice behind the first, in order."""
_MOST_COLUMNS = 1 << 16
_BRANCHES = {"OnnxMLTools": b"BRANCH_LT", "skl2onnx": b"BRANCH_LT", "CatBoost": b"BRANCH_GT"}
"""How trees branch, by their writer, that take NaN without a way that says so.

Of those of the first two only XGBoost's branch by less-than; trained without gaps, all ways are
false. CatBoost takes a gap for the least value (nan_mode Min), which is greater than nothing.
"""


def taken(model: ModelProto, spec: TensorSpec) -> frozenset[int]:
    """The columns of an input that take gaps; of one without a fixed last axis it is column 0.

    Args:
        model: The model, with its functions inlined.
        spec: The input.
    """
    asked: set[int] = set()
    hidden: set[int] = set()
    columns = range(count(spec))
    held: dict[str, Columns] = {
        spec.name: tuple(columns) if spec.shape[-1:] == (len(columns),) else frozenset(columns)
    }
    passing = _Passing(_constants(model.graph), len(spec.shape) - 1)
    for node in model.graph.node:  # they are sorted: ONNX, IR.md, "Graphs"
        given = frozenset(place for name in node.input for place in held.get(name, ()))
        if not given:
            continue
        if _asks(node, model.producer_name):
            asked |= given
        elif _hides(node):
            hidden |= given
        else:
            held |= passing.on(node, held)
    return frozenset(asked - hidden)


def count(spec: TensorSpec) -> int:
    """The number of columns of an input; 1 where it varies or is out of all proportion."""
    size = spec.shape[-1] if spec.shape else 1
    return size if isinstance(size, int) and size <= _MOST_COLUMNS else 1


def _asks(node: NodeProto, producer: str) -> bool:
    """Whether an operator expects NaN."""
    if node.op_type == "Equal":  # PyTorch's isnan before opset 9, and x == x by hand
        return node.input[0] == node.input[1]
    if node.op_type == "Imputer":
        replaced = _attributes(node).get("replaced_value_float", 0.0)
        return bool(np.isnan(replaced))
    if node.op_type in _TREES:
        ways = _attributes(node).get("nodes_missing_value_tracks_true", ())
        ways = numpy_helper.to_array(ways) if isinstance(ways, TensorProto) else ways
        return any(ways) or _branches_by(node, _BRANCHES.get(producer, b""))
    return node.op_type == "IsNaN"


def _branches_by(node: NodeProto, mode: bytes) -> bool:
    modes = _attributes(node).get("nodes_modes", ())
    kinds = set(modes) if isinstance(modes, list) else set()
    return mode in kinds and kinds <= {mode, b"LEAF"}


def _hides(node: NodeProto) -> bool:
    """Whether an operator makes a number of NaN that looks like any other."""
    if node.op_type == "Cast":
        return _attributes(node)["to"] not in _FLOATS
    return node.op_type in _HIDING or node.op_type in _TREES


@dataclass(frozen=True, slots=True)
class _Passing:
    """How operators pass NaN on.

    Attributes:
        constants: Small constants of the graph, by name.
        last: The input's last axis, which all tensors have whose columns are in order.
    """

    constants: Mapping[str, Array]
    last: int

    def on(self, node: NodeProto, held: Mapping[str, Columns]) -> dict[str, Columns]:
        """The columns that a node's outputs hold, by name; none where NaN ends, or may end."""
        parts = [held[name] for name in node.input if name in held]
        mixed = frozenset(place for part in parts for place in part)
        if node.op_type == "Split" and node.input[0] in held:
            return self._split(node, parts[0])
        found: Columns = frozenset()
        if node.op_type in _UNARY:
            found = parts[0]
        elif node.op_type in _BINARY and not (node.op_type == "Div" and node.input[1] in held):
            found = parts[0] if self._is_aligned(node, held) else mixed
        elif node.op_type in _MIXING:
            found = mixed
        elif node.op_type == "Concat":
            whole = tuple(place for part in parts for place in part)
            in_order = len(parts) == len(node.input) and not _mixed(*parts) and self._is_last(node)
            found = whole if in_order else mixed
        elif node.op_type in _PICKING and node.input[0] in held:
            found = self._picked(node, parts[0])
        return {node.output[0]: found} if found else {}

    def _is_aligned(self, node: NodeProto, held: Mapping[str, Columns]) -> bool:
        """Whether both operands have the same columns, or one is a constant for each or all."""
        one, other = node.input
        if one in held and other in held:
            return held[one] == held[other]
        columns = held[one] if one in held else held[other]
        constant = self.constants.get(other if one in held else one)
        return constant is not None and constant.shape[-1:] in ((), (1,), (len(columns),))

    def _is_last(self, node: NodeProto) -> bool:
        return _attributes(node).get("axis", 0) in (-1, self.last)

    def _picked(self, node: NodeProto, columns: Columns) -> Columns:
        """The columns that are cut out; all, in no order, where these are not known."""
        if _mixed(columns):
            return columns
        if node.op_type == "Slice":
            return self._sliced(node, tuple(columns))
        if node.op_type == "Gather" and not self._is_last(node):
            return frozenset(columns)
        places = self.constants.get(node.input[1])
        if places is None:
            return frozenset(columns)
        picked = tuple(np.array(columns)[places.ravel()].tolist())
        return picked if places.ndim else frozenset(picked)

    def _sliced(self, node: NodeProto, columns: tuple[int, ...]) -> Columns:
        given = [self._numbers(node, place, name) for place, name in enumerate(_CUTS, 1)]
        starts, ends, axes, steps = given
        if not starts or not ends:
            return frozenset(columns)
        axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if axis in (-1, self.last):
                columns = columns[slice(start, end if end >= -len(columns) else None, step)]
        return columns

    def _split(self, node: NodeProto, columns: Columns) -> dict[str, Columns]:
        sizes = self._numbers(node, 1, "split")
        if _mixed(columns) or not self._is_last(node):
            return dict.fromkeys(node.output, columns)
        even = [-(-len(columns) // len(node.output))] * len(node.output)
        ends = np.cumsum(sizes or even).tolist()
        starts = [0, *ends]
        cuts = zip(node.output, starts, ends, strict=False)
        return {output: tuple(columns)[start:end] for output, start, end in cuts}

    def _numbers(self, node: NodeProto, place: int, name: str) -> list[int]:
        """Integers of an input or, in older opsets, of an attribute; none if they are not known."""
        if place < len(node.input) and node.input[place]:
            value = self.constants.get(node.input[place])
            return [] if value is None else value.ravel().tolist()
        return list(_attributes(node).get(name, ()))


def _mixed(*columns: Columns) -> bool:
    return any(isinstance(part, frozenset) for part in columns)


def _constants(graph: GraphProto) -> dict[str, Array]:
    """Constants that may be places or operands for each column, by name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = _attributes(node).get("value") if node.op_type == "Constant" else None
        if isinstance(value, TensorProto):
            tensors[node.output[0]] = value
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in tensors.items()
        if tensor.data_location != TensorProto.EXTERNAL
        and np.prod(tensor.dims, dtype=np.int64) <= _MOST_COLUMNS
    }


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
