"""Loops that go on until all rows of a call are done: what one that is done has must stay."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from marship.contract import Array, Arrays
from marship.proof import operators
from marship.proof.influence.trace import Trace, session

_LEAST, _ROUNDS, _ZERO = "/marship/least", "/marship/rounds", "/marship/zero"
_MORE = 3
_FEWEST = 2


def stays(trace: Trace, node: NodeProto, requests: int) -> bool:
    """Whether outputs of requests stay as they are where a loop goes on after their last round.

    Args:
        trace: The call.
        node: The Loop, in the main graph.
        requests: How many of the call's requests to run, each by itself.

    Returns:
        False also where fewer than two of them end it before its limit, which shows nothing.
    """
    model = _longer(trace.model, node)
    if model is None:
        return False
    run = session(model, trace.libraries)
    ended = 0
    for request in _requests(trace, requests):
        try:
            rounds, outputs = _results(run, request, 0)
            more, others = _results(run, request, rounds + _MORE)
        except Exception:  # noqa: S112  of no common base; its body cannot do further rounds
            continue
        if more == rounds:
            continue  # it ran to its limit
        ended += 1
        if not all(map(_same, outputs, others)):
            return False
    return ended >= _FEWEST


def _requests(trace: Trace, count: int) -> Iterator[Arrays]:
    for number in range(min(count, trace.rows)):
        yield {
            name: array[number * len(array) // trace.rows :][: len(array) // trace.rows]
            for name, array in trace.inputs.items()
        }


def _results(run: Any, request: Arrays, least: int) -> tuple[int, list[Array]]:  # noqa: ANN401
    taken = {value.name for value in run.get_inputs()}
    feeds = {name: array for name, array in request.items() if name in taken}
    *outputs, rounds = run.run(None, {**feeds, _LEAST: np.array(least)})
    return int(rounds), outputs


def _same(one: Array, other: Array) -> bool:
    is_float = one.dtype.kind == "f"
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=is_float)


def _longer(model: ModelProto, node: NodeProto) -> ModelProto | None:
    """The model with a least number of rounds as an input, and their number as its last output."""
    copy = ModelProto()
    copy.CopyFrom(model)
    loop = next((one for one in copy.graph.node if one.output[:] == node.output[:]), None)
    if loop is None:
        return None
    (body,) = operators.subgraphs(loop)
    states = len(loop.input) - 2
    number, go_on = body.input[0].name, body.output[0].name
    goes = f"{_LEAST}/goes"
    body.node.append(onnx.helper.make_node("Less", [f"{number}/next", _LEAST], [f"{goes}/least"]))
    body.node.insert(0, onnx.helper.make_node("Add", [number, f"{_ZERO}/one"], [f"{number}/next"]))
    body.node.append(onnx.helper.make_node("Or", [go_on, f"{goes}/least"], [goes]))
    body.node.append(onnx.helper.make_node("Add", [f"{_ROUNDS}/in", f"{_ZERO}/one"], [_ROUNDS]))
    body.input.append(_scalar(f"{_ROUNDS}/in"))
    body.output[0].name = goes
    body.output.insert(1 + states, _scalar(_ROUNDS))
    loop.input.append(_ZERO)
    loop.output.insert(states, f"{_ROUNDS}/out")
    for name, value in ((_ZERO, 0), (f"{_ZERO}/one", 1)):
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    copy.graph.input.append(_scalar(_LEAST))
    copy.graph.output.append(_scalar(f"{_ROUNDS}/out"))
    return copy


def _scalar(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, TensorProto.INT64, [])
