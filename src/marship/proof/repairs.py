"""Rewrites what ONNX Runtime runs and ONNX's checker refuses, as converters leave it.

| found | becomes |
|---|---|
| nodes that stand before those whose outputs they take | sorted nodes |
| initializers that are no inputs, which IR version 3 wants | IR version 4, which does not |
| an output without a shape | its axes by shape inference, or as many as runs give |
| an input without a shape | as many axes as the example has |

Source: ONNX's IR.md, "Graphs" and "Model Versioning".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from marship.contract import Arrays, Contract
from marship.errors import ModelError
from marship.proof import operators
from marship.proof.cases import batches, draw_random, sizes_to_try
from marship.proof.comparison import RunModel

_DRAWS = 4
"""Inputs to run, as a branch may give another number of axes."""
_FREES_INITIALIZERS = 4


def repair(model: ModelProto) -> bool:
    """Repair what needs no run, in place; whether something was changed."""
    repairs = [_sort(model.graph), _free_initializers(model), _infer_outputs(model)]
    return any(repairs)


def shapeless(values: Iterable[ValueInfoProto]) -> list[ValueInfoProto]:
    """The tensors whose number of axes is not stated."""
    kinds = ((value, value.type) for value in values)
    return [
        value
        for value, kind in kinds
        if kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape")
    ]


def state_inputs(model: ModelProto, axes: Mapping[str, int]) -> None:
    """Give inputs without a shape their numbers of axes by name, in place."""
    for value in shapeless(model.graph.input):
        _state(value, axes[value.name])


def state_outputs(
    model: ModelProto, run: RunModel, contract: Contract, examples: Sequence[Arrays]
) -> None:
    """Give outputs without a shape as many axes as runs give, in place.

    Args:
        model: The model.
        run: Runs it.
        contract: Its inputs.
        examples: Inputs that it takes; drawn ones are tried, too.

    Raises:
        ModelError: It runs on none of the inputs, or an output has several numbers of axes.
    """
    outputs, refused = _tried(run, contract, examples)
    if not outputs:
        raise ModelError(
            f"{refused} Drawn inputs were tried to find the axes of "
            f"{shapeless(model.graph.output)[0].name}. Give it some that it takes: "
            "--example inputs.npz."
        ) from refused
    for value in shapeless(model.graph.output):
        ranks = sorted({getattr(arrays[value.name], "ndim", 0) for arrays in outputs})
        if len(ranks) > 1:
            raise ModelError(
                f"output {value.name} must have one number of axes, got "
                f"{' and '.join(map(str, ranks))} by the values of inputs. Reshape it in the model."
            )
        _state(value, ranks[0])


def _tried(
    run: RunModel, contract: Contract, examples: Sequence[Arrays]
) -> tuple[list[Arrays], ModelError | None]:
    """The outputs of runs that succeed, and why the last of the others did not."""
    batch = batches(contract)[-1]
    drawn = (
        draw_random(contract, None, batch | sizes, seed).inputs
        for sizes in sizes_to_try(contract, None)
        for seed in range(_DRAWS)
    )
    outputs: list[Arrays] = []
    refused = None
    for inputs in (*examples[:_DRAWS], *drawn):
        try:
            outputs.append(run(inputs))
        except ModelError as error:
            refused = error
    return outputs, refused


def _state(value: ValueInfoProto, axes: int) -> None:
    kind = value.type.tensor_type.elem_type
    value.type.CopyFrom(onnx.helper.make_tensor_type_proto(kind, [None] * axes))


def _sort(graph: GraphProto) -> bool:
    """Sort the nodes, unless they are; those of subgraphs must be for ONNX Runtime, too."""
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    before = {
        place: {makers[name] for name in _read(node) if name in makers}
        for place, node in enumerate(graph.node)
    }
    if all(place > other for place, others in before.items() for other in others):
        return False
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError:  # the checker says so
        return False
    nodes = [graph.node[place] for place in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return True


def _read(node: NodeProto) -> Iterator[str]:
    """The tensors that a node takes, those of its subgraphs included."""
    yield from node.input
    for body in operators.subgraphs(node):
        yield from (value.name for value in body.output)
        for inner in body.node:
            yield from _read(inner)


def _free_initializers(model: ModelProto) -> bool:
    """Raise the IR version where an initializer is no input; all stay constants."""
    stored = {tensor.name for tensor in model.graph.initializer}
    named = {value.name for value in model.graph.input}
    if model.ir_version >= _FREES_INITIALIZERS or stored <= named:
        return False
    model.ir_version = _FREES_INITIALIZERS
    kept = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return True


def _infer_outputs(model: ModelProto) -> bool:
    """State the axes of outputs that shape inference finds; names that it invents are left out."""
    missing = {value.name: value for value in shapeless(model.graph.output)}
    if not missing:
        return False
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
    except (onnx.shape_inference.InferenceError, ValueError):  # over 2 GB, or invalid
        return False
    names = {
        axis.dim_param for value in model.graph.input for axis in value.type.tensor_type.shape.dim
    }
    found = [v for v in inferred if v.name in missing and v.type.tensor_type.HasField("shape")]
    for value in found:
        shape = missing[value.name].type.tensor_type.shape
        shape.CopyFrom(value.type.tensor_type.shape)
        for axis in shape.dim:
            if axis.dim_param not in names:
                axis.ClearField("dim_param")
    return bool(found)
