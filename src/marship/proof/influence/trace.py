"""The tensors of one call of a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from marship.contract import Array, Arrays
from marship.proof import operators
from marship.serving.model import custom_ops

_LARGEST_MODEL = 1 << 30
_NARROW = re.compile(r"tensor\((bfloat16|float8\w*|float4\w*|u?int[24])\)")
_WIDE = "/marship/wide"
LOOPS = ("Loop", "Scan")
MOST_VALUES = 1 << 16


def whole(path: Path) -> ModelProto | None:
    """The model with its weights; None if it is too large to be copied."""
    model = operators.inlined(onnx.load(str(path), load_external_data=False))
    external = sum(
        (path.parent / place).stat().st_size
        for place in {
            entry.value
            for tensor in onnx.external_data_helper._get_all_tensors(model)
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )
    if model.ByteSize() + external > _LARGEST_MODEL:
        return None
    onnx.load_external_data_for_model(model, str(path.parent))
    return model


@dataclass(frozen=True, slots=True)
class Trace:
    """The tensors of one call.

    Attributes:
        model: The model, with the branch that was taken in place of each If.
        rows: The number of requests in the call.
        inputs: The inputs of the call.
        shapes: The shapes of all arrays, by name.
        values: Values of small arrays that do not depend on the inputs' values.
        conditions: The node of each If that was replaced, by the name of its condition.
        held: The arrays that loops take.
        libraries: Files with custom operators.
    """

    model: ModelProto
    rows: int
    inputs: Arrays
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, Array]
    conditions: Mapping[str, NodeProto]
    held: Arrays
    libraries: Sequence[Path]


def traced(model: ModelProto, parts: Sequence[Arrays], libraries: Sequence[Path]) -> Trace | None:
    """Run requests in one call; None if the model does not run so."""
    inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return run(model, inputs, {*inputs}, len(parts), libraries)


def run(
    model: ModelProto,
    inputs: Arrays,
    data: set[str],
    rows: int,
    libraries: Sequence[Path],
) -> Trace | None:
    """Run a call.

    Args:
        model: The model.
        inputs: The inputs of the call.
        data: Those whose values count as the user's.
        rows: The number of requests in it.
        libraries: Files with custom operators.

    Returns:
        None if the model does not run on them.
    """
    conditions: dict[str, NodeProto] = {}
    while True:
        named = _data_names(model, data)
        found = _arrays(model, inputs, libraries)
        if found is None:
            return None
        arrays, shapes = found
        shapes |= {name: array.shape for name, array in arrays.items()}
        values = {
            name: array
            for name, array in (arrays | inputs).items()
            if name not in named and array.size <= MOST_VALUES
        }
        known = {node.input[0]: node for node in model.graph.node if node.op_type == "If"}
        known = {name: node for name, node in known.items() if name in values}
        if not known:
            held = _held(model, arrays | inputs)
            return Trace(model, rows, inputs, shapes, values, conditions, held, libraries)
        conditions |= known
        model = _with_branches(model, {name: bool(values[name].all()) for name in known})


def _held(model: ModelProto, arrays: Arrays) -> Arrays:
    """The arrays that loops take, whose bodies are run by themselves."""
    loops = [node for node in model.graph.node if node.op_type in LOOPS]
    wanted = set().union(*map(used, loops))
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name in wanted
    }
    return stored | {name: array for name, array in arrays.items() if name in wanted}


def _data_names(model: ModelProto, data: set[str]) -> set[str]:
    """The tensors whose values may depend on those of some inputs."""
    found = set(data)
    for node in model.graph.node:
        if node.op_type not in ("Shape", "Size") and found & used(node):
            found.update(node.output)
    return found


def used(node: NodeProto) -> set[str]:
    """The names that a node takes, within its subgraphs, too."""
    inner = (one for graph in operators.subgraphs(node) for one in graph.node)
    return {*node.input}.union(*map(used, inner)) - {""}


def _arrays(
    model: ModelProto, inputs: Arrays, libraries: Sequence[Path]
) -> tuple[dict[str, Array], dict[str, tuple[int, ...]]] | None:
    """All arrays of a call in the main graph, and the shapes of those that NumPy cannot hold."""
    copy = ModelProto()
    copy.CopyFrom(model)
    outputs = {value.name for value in copy.graph.output}
    names = [name for node in copy.graph.node for name in node.output if name]
    copy.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in outputs
    )
    taken = {value.name for value in copy.graph.input}
    try:
        session = _session(copy, libraries)
        found = {value.name: value.type for value in session.get_outputs()}
        narrow = [name for name, kind in found.items() if _NARROW.fullmatch(kind)]
        if narrow:
            for name in narrow:
                wide = onnx.helper.make_node("Cast", [name], [name + _WIDE], to=1)  # float32
                copy.graph.node.append(wide)
                copy.graph.output.append(onnx.ValueInfoProto(name=name + _WIDE))
            session = _session(copy, libraries)
        wanted = [value.name for value in session.get_outputs() if value.name not in narrow]
        values = session.run(wanted, {k: v for k, v in inputs.items() if k in taken})
    except Exception:
        return None
    held = dict(zip(wanted, values, strict=True))
    shapes = {name: held.pop(name + _WIDE).shape for name in narrow}
    return {name: one for name, one in held.items() if isinstance(one, np.ndarray)}, shapes


def _session(model: ModelProto, libraries: Sequence[Path]) -> Any:  # noqa: ANN401  onnxruntime ships no types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    custom_ops.register(options, libraries)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _with_branches(model: ModelProto, taken: Mapping[str, bool]) -> ModelProto:
    """The model with a branch in place of each If whose condition is known."""
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        if node.op_type != "If" or node.input[0] not in taken:
            nodes.append(node)
            continue
        wanted = "then_branch" if taken[node.input[0]] else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
        copy.graph.initializer.extend(branch.initializer)
        nodes += branch.node
        for inner, outer in zip(branch.output, node.output, strict=True):
            if outer:
                nodes.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
