"""Parts of an ONNX graph as matrices and polynomials, by asking ONNX Runtime.

A part that is affine is known from its values at zero and at the unit vectors; one that applies a
polynomial to each value, from its values at a few numbers. Random points hold what was found
against the part itself. So convolutions, poolings and norms need no code of their own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from marship.contract import Arrays
from marship.errors import ModelError

Matrix = npt.NDArray[np.float64]
Tensors = Mapping[str, Matrix]
Run = Callable[[Tensors], Matrix]
"""Values of a part's inputs by name, float64 (rows, size), to those of its output."""

_ROWS = 256
"""Asked about in one call."""
_POINTS = (0.0, 1.0, -1.0, 2.0)
"""Where a polynomial of degree 3 is known from."""
_CHECKS = 4
_RELATIVE = 1e-4
"""By how much float32 may be off at the random points."""
DEGREE = 3
SHAPES = {"Shape", "Size"}
"""Operators whose result is known from shapes."""


@dataclass(frozen=True)
class SegmentedGraph:
    """A graph from one tensor, its input or one within it, to its output.

    Attributes:
        model: The graph, its weights in it.
        input: The tensor from which on values are encrypted.
        row: One row of the graph's own inputs, by name.
    """

    model: onnx.ModelProto
    input: str
    row: Arrays

    @classmethod
    def load(cls, path: Path, row: Arrays, start: str | None = None) -> "SegmentedGraph":
        """Read an ONNX file.

        Args:
            path: The file.
            row: One row of its inputs, by name.
            start: The tensor from which on values are encrypted; None is the only input.

        Raises:
            ModelError: There is no such tensor.
        """
        model = onnx.load(str(path))
        graph = cls(model, start or next(iter(row)), row)
        if graph.input not in graph.shapes:
            raise ModelError(
                f"a model must have the tensor from which on it is encrypted, got none named "
                f"{start}. Name an output of a node in {path}."
            )
        return graph

    @property
    def output(self) -> str:
        """The name of the output."""
        return str(self.model.graph.output[0].name)

    @cached_property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes behind the input, in their order."""
        behind, found = {self.input}, []
        for node in self.model.graph.node:
            if behind & set(node.input) and self.input not in node.output:
                behind |= set(node.output)
                found.append(node)
        return found

    @cached_property
    def outside(self) -> set[str]:
        """Tensors that depend on the graph's inputs by another way than the input here."""
        found = set(self.row) - {self.input}
        for node in self.model.graph.node:
            if found & set(node.input) and node.op_type not in SHAPES:
                found |= set(node.output) - {self.input}
        return found - {name for node in self.nodes for name in node.output}

    def split(self, rows: Arrays) -> tuple[Matrix, Matrix]:
        """The values of the input and of the output, float64 (rows, size), by the model itself."""
        session = self._whole
        found = session.run([self.input, self.output], dict(rows)) if self.is_within else [
            rows[self.input], *session.run([self.output], dict(rows))
        ]  # fmt: skip
        first, last = (array.reshape(len(array), -1).astype(np.float64) for array in found)
        return first, last

    @property
    def is_within(self) -> bool:
        """Whether values are encrypted from a tensor within the graph on."""
        return self.input not in self.row

    def encoder(self) -> onnx.ModelProto:
        """What leads to the input, as a model of its own."""
        return self._extracted((), self.input)

    @cached_property
    def constants(self) -> dict[str, npt.NDArray[np.generic]]:
        """Weights and constants by name."""
        found = {one.name: numpy_helper.to_array(one) for one in self.model.graph.initializer}
        for node in self.model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        return found

    @cached_property
    def _whole(self) -> ort.InferenceSession:
        """All of the graph, with every tensor as an output."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        names = [name for node in model.graph.node for name in node.output if name]
        del model.graph.output[:]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
        return _session(model)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each tensor, by running all of the graph on one row."""
        names = [one.name for one in self._whole.get_outputs()]
        arrays = self._whole.run(names, dict(self.row))
        given = {name: array.shape[1:] for name, array in self.row.items()}
        return given | {
            name: tuple(np.shape(array)[1:]) for name, array in zip(names, arrays, strict=True)
        }

    def size(self, name: str) -> int:
        """Values in one row of a tensor."""
        return int(np.prod(self.shapes[name], dtype=np.int64))

    def part(self, sources: Sequence[str], target: str) -> Run:
        """What leads from some tensors to another one.

        In float64 where ONNX Runtime has all operators for it, else in float32.
        """
        model = self._extracted(sources, target)
        try:
            return self._runner(_widened(model), sources, target, np.float64)
        except Exception:  # ONNX Runtime's own exceptions share no narrower base
            return self._runner(model, sources, target, np.float32)

    def _runner(
        self, model: onnx.ModelProto, sources: Sequence[str], target: str, dtype: npt.DTypeLike
    ) -> Run:
        session = _session(model)
        given = {one.name for one in session.get_inputs()}

        def run(values: Tensors) -> Matrix:
            rows = len(next(iter(values.values())))
            parts = []
            for start in range(0, rows, _ROWS):
                count = min(_ROWS, rows - start)
                feed = {
                    name: values[name][start : start + count].astype(dtype).reshape(
                        count, *self.shapes[name]
                    )
                    for name in sources
                    if name in given
                }  # fmt: skip
                if self.input in given and self.input not in sources:  # for its shape alone
                    feed[self.input] = np.zeros((count, *self.shapes[self.input]), dtype)
                (array,) = session.run([target], feed)
                parts.append(array.reshape(count, -1).astype(np.float64))
            return np.concatenate(parts)

        return run

    def _extracted(self, sources: Sequence[str], target: str) -> onnx.ModelProto:
        """What leads to a tensor, from some tensors and whatever inputs it needs beside them."""
        graph = self.model.graph
        makers = {name: node for node in graph.node for name in node.output}
        wanted, waiting = set(), [target]
        while waiting:
            name = waiting.pop()
            if name in sources or name not in makers or name in wanted:
                continue
            wanted.add(name)
            waiting += makers[name].input
        nodes = [node for node in graph.node if wanted & set(node.output)]
        used = {name for node in nodes for name in node.input}
        own = [one for one in graph.input if one.name in used and one.name in self.row]
        stated = {one.name for one in own}
        within = [name for name in dict.fromkeys(sources) if name in used and name not in stated]
        part = helper.make_graph(
            nodes,
            "part",
            [*own, *map(self._stated, within)],
            [self._stated(target)],
            [one for one in graph.initializer if one.name in used],
        )
        return helper.make_model(
            part,
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
            functions=self.model.functions,
        )

    def _stated(self, name: str) -> onnx.ValueInfoProto:
        shape: list[str | int | None] = ["batch", *self.shapes[name]]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def affine(self, sources: Sequence[str], target: str) -> tuple[dict[str, Matrix], Matrix]:
        """The matrices (outputs, inputs) by source, and the bias, of a part that is affine.

        Raises:
            ModelError: It is not.
        """
        if target in sources:
            return {target: np.eye(self.size(target))}, np.zeros(self.size(target))
        run = self.part(sources, target)
        sizes = {name: self.size(name) for name in sources}
        bias = run({name: np.zeros((1, size)) for name, size in sizes.items()})[0]
        matrices = {}
        for name in sources:
            units = {n: np.zeros((sizes[name], size)) for n, size in sizes.items()}
            units[name] = np.eye(sizes[name])
            matrices[name] = (run(units) - bias).T
        generator = np.random.default_rng(0)
        points = {name: generator.normal(size=(_CHECKS, size)) for name, size in sizes.items()}
        found = sum((points[name] @ matrices[name].T for name in sources), start=bias)
        if not _agree(run(points), found):
            raise ModelError(
                f"what leads to {target} must be sums and products with constants, got something "
                "else. Leave it out of the model, and to the client."
            )
        return matrices, bias

    def polynomial(self, source: str, target: str) -> Matrix:
        """The coefficients, float64 (4, size), of a polynomial that each value goes through.

        Raises:
            ModelError: There is none of degree 3.
        """
        run, size = self.part([source], target), self.size(source)
        values = run({source: np.outer(_POINTS, np.ones(size))})
        powers = np.vander(_POINTS, DEGREE + 1, increasing=True)
        coefficients = np.asarray(np.linalg.solve(powers, values), np.float64)
        largest = np.abs(coefficients).max()
        coefficients[np.abs(coefficients) < 1e-7 * largest] = 0.0
        points = np.random.default_rng(0).normal(size=(_CHECKS, size))
        found = sum(coefficients[power] * points**power for power in range(DEGREE + 1))
        if not _agree(run({source: points}), np.asarray(found)):
            raise ModelError(
                f"what leads to {target} must be a polynomial of degree 2 or 3, got something "
                "else. Train with --activation square."
            )
        return coefficients


def _agree(got: Matrix, found: Matrix) -> bool:
    if got.shape != found.shape or not np.isfinite(got).all():
        return False
    return bool(np.abs(got - found).max(initial=0) <= _RELATIVE * (1 + np.abs(got).max(initial=0)))


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for one in (*wide.graph.input, *wide.graph.output):
        _widen_type(one.type.tensor_type)
    _replace(wide.graph.initializer)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _replace([attribute.t])
            elif (node.op_type, attribute.name, attribute.i) == ("Cast", "to", TensorProto.FLOAT):
                attribute.i = TensorProto.DOUBLE
    return wide


def _widen_type(kind: onnx.TypeProto.Tensor) -> None:
    if kind.elem_type == TensorProto.FLOAT:
        kind.elem_type = TensorProto.DOUBLE


def _replace(tensors: Iterable[onnx.TensorProto]) -> None:
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
