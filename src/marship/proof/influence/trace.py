"""The tensors of one call of a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto

from marship.contract import Array, Arrays
from marship.proof import operators
from marship.serving.model import custom_ops

if TYPE_CHECKING:
    from marship.proof.influence.calls import Calls

_LARGEST_MODEL = 1 << 30
NARROW = re.compile("bfloat16|float8|float4|int[24][)]")
"""Types that NumPy does not have."""
_SHAPE = "/marship/shape"
LOOPS = ("Loop", "Scan")
MOST_VALUES = 1 << 23


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
        taken: The branch of each that was taken, by the name of its condition.
        held: The arrays that loops take.
        libraries: Files with custom operators.
        data: The names of those that may depend on the inputs' values.
        calls: What it was worked out by, if it did not run.
    """

    model: ModelProto
    rows: int
    inputs: Arrays
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, Array]
    conditions: Mapping[str, NodeProto]
    taken: Mapping[str, bool]
    held: Arrays
    libraries: Sequence[Path]
    data: set[str]
    calls: "Calls | None" = None


def traced(
    model: ModelProto,
    parts: Sequence[Arrays],
    libraries: Sequence[Path],
    forced: Mapping[str, bool],
) -> Trace | None:
    """Run requests in one call; None if the model does not run so."""
    inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return run(model, Feed(inputs, {*inputs}, len(parts), forced), libraries)


@dataclass(frozen=True, slots=True)
class Feed:
    """What a model is run on.

    Attributes:
        inputs: The inputs.
        data: Those whose values count as the user's.
        rows: The number of requests in it.
        forced: The branch to take whatever the condition is, by the name of the condition.
    """

    inputs: Arrays
    data: set[str]
    rows: int
    forced: Mapping[str, bool] = field(default_factory=dict)


def run(model: ModelProto, call: Feed, libraries: Sequence[Path]) -> Trace | None:
    """Run a call, with files of custom operators; None if the model does not run on it."""
    inputs = call.inputs
    conditions: dict[str, NodeProto] = {}
    taken: dict[str, bool] = {}
    while True:
        named = _data_names(model, call.data)
        looped = _taken_by_loops(model)
        wanted = {name for name in _outputs(model.graph) if name not in named} | looped
        found = _arrays(model, call, wanted, libraries)
        if found is None:
            return None
        arrays, shapes = found
        values = {
            name: array
            for name, array in (arrays | inputs).items()
            if name not in named and array.size <= MOST_VALUES
        }
        known = {node.input[0]: node for node in model.graph.node if node.op_type == "If"}
        known = {name: node for name, node in known.items() if name in values}
        if not known:
            held = _held(model, arrays | inputs, looped)
            return Trace(
                model, call.rows, inputs, shapes, values, conditions, taken, held, libraries, named
            )
        conditions |= known
        taken |= {name: call.forced.get(name, bool(values[name].all())) for name in known}
        model = _with_branches(model, taken)


def _taken_by_loops(model: ModelProto) -> set[str]:
    return set().union(*(used(node) for node in model.graph.node if node.op_type in LOOPS))


def _held(model: ModelProto, arrays: Arrays, wanted: set[str]) -> Arrays:
    """The arrays that loops take, whose bodies are run by themselves."""
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
    model: ModelProto, call: Feed, wanted: set[str], libraries: Sequence[Path]
) -> tuple[dict[str, Array], dict[str, tuple[int, ...]]] | None:
    """The arrays of a call in the main graph that are wanted, and the shapes of all.

    The rest would fill the memory: of them there is the shape alone.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    names = [name for name in _outputs(copy.graph) if name]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    taken = {value.name for value in copy.graph.input}
    try:
        kinds = {value.name: value.type for value in session(copy, libraries).get_outputs()}
        tensors = [name for name in names if kinds[name].startswith("tensor(")]
        held = [name for name in tensors if name in wanted and not NARROW.search(kinds[name])]
        shaped = {name + _SHAPE: name for name in tensors if name not in held}
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (*held, *shaped))
        copy.graph.node.extend(onnx.helper.make_node("Shape", [v], [k]) for k, v in shaped.items())
        opened = session(copy, libraries)
        values = opened.run(None, {k: v for k, v in call.inputs.items() if k in taken})
    except Exception:
        return None
    found = dict(zip((value.name for value in opened.get_outputs()), values, strict=True))
    shapes = {name: tuple(map(int, found.pop(shape))) for shape, name in shaped.items()}
    return found, shapes | {name: array.shape for name, array in found.items()}


def session(model: ModelProto, libraries: Sequence[Path]) -> Any:  # noqa: ANN401  onnxruntime ships no types
    """A session that runs each operator as it stands in the graph."""
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
        own = {*_outputs(branch), *(tensor.name for tensor in branch.initializer)}
        _rename(branch, {name: f"{node.output[0]}/{wanted}/{name}" for name in own - {""}})
        copy.graph.initializer.extend(branch.initializer)
        nodes += branch.node
        for inner, outer in zip(branch.output, node.output, strict=True):
            if outer:
                nodes.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _outputs(graph: GraphProto) -> list[str]:
    return [name for node in graph.node for name in node.output]


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors, within subgraphs, too: branches may use one name for different tensors."""
    for node in graph.node:
        for held in (node.input, node.output):
            held[:] = [names.get(name, name) for name in held]
        for inner in operators.subgraphs(node):
            _rename(inner, names)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in graph.output:
        value.name = names.get(value.name, value.name)
