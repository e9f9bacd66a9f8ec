"""Which axes of a file have one size, whatever their names say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marship.contract import Contract
from marship.proof import axes, graph, parity


def resolved(
    path: Path,
    nodes: Sequence[Any],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    constants: dict[str, Any] | None = None,
) -> Contract:
    """The contract of a graph whose inputs and outputs are float32 of these shapes."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path / "g.onnx"))
    return axes.resolved(graph.contract_of(path / "g.onnx"), parity.runner(path / "g.onnx"))


def shapes(contract: Contract) -> list[tuple[int | str, ...]]:
    """All shapes, the inputs' first."""
    return [spec.shape for spec in (*contract.inputs, *contract.outputs)]


RELU = helper.make_node("Relu", ["x"], ["y"])


@pytest.mark.parametrize("free", [None, "", "?", "-1", -1])
def test_an_axis_without_a_name_is_the_batch_where_outputs_follow_it(
    free: Any, tmp_path: Path
) -> None:
    """Names that are none: missing, empty, a question mark, a size below 0."""
    contract = resolved(tmp_path, [RELU], {"x": [free, 3]}, {"y": [free, 3]})
    assert shapes(contract) == [("batch", 3), ("batch", 3)]


def test_axes_of_one_name_may_have_different_sizes(tmp_path: Path) -> None:
    """Three axes that are all called `?`, and two that share a real name by mistake."""
    contract = resolved(tmp_path, [RELU], {"x": ["?", "?", "?"]}, {"y": ["?", "?", "?"]})
    assert shapes(contract) == [("batch", "x_1", "x_2")] * 2
    contract = resolved(tmp_path, [RELU], {"x": ["n", "L", "L"]}, {"y": ["n", "L", "L"]})
    (taken, given) = shapes(contract)
    assert taken == given
    assert len(set(taken)) == 3


def test_axes_that_only_run_with_one_size_get_one_name(tmp_path: Path) -> None:
    """A product of matrices ties an axis of each; the others stay free."""
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    contract = resolved(tmp_path, [node], {"a": [None, None], "b": [None, None]}, {"y": [None] * 2})
    (a, b, y) = shapes(contract)
    assert a[1] == b[0]
    assert y == (a[0], b[1])
    assert len({*a, *b}) == 3


def test_three_inputs_of_one_length_are_tied(tmp_path: Path) -> None:
    """None of them runs at another size alone, nor does a pair."""
    nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Add", ["s", "c"], ["y"])]
    contract = resolved(tmp_path, nodes, {k: [None, 4] for k in "abc"}, {"y": [None, 4]})
    assert shapes(contract) == [("batch", 4)] * 4


def test_a_stated_name_is_kept_for_what_is_tied_to_it(tmp_path: Path) -> None:
    """An input without a name beside one with one."""
    node = helper.make_node("Add", ["a", "b"], ["y"])
    contract = resolved(tmp_path, [node], {"a": ["rows", 4], "b": [None, 4]}, {"y": [None, 4]})
    assert shapes(contract) == [("rows", 4)] * 3


def test_the_first_axis_of_inputs_that_never_meet_is_taken_at_its_word(tmp_path: Path) -> None:
    """Two towers run at different numbers of rows, and nobody means that."""
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["b"], ["z"])]
    given = {"a": ["n", 2], "b": ["n", 5]}
    contract = resolved(tmp_path, nodes, given, {"y": ["n", 2], "z": [None, 5]})
    assert shapes(contract) == [("n", 2), ("n", 5), ("n", 2), ("n", 5)]


def test_rows_that_depend_on_values_do_not_have_the_inputs_name(tmp_path: Path) -> None:
    """A filter whose output is stated to have the rows of its input."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "one"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["keep"]),
        helper.make_node("Compress", ["x", "keep"], ["y"], axis=0),
    ]
    constants = {"one": np.array([1]), "zero": np.float32(0)}
    for stated in ("n", 8, None):
        contract = resolved(tmp_path, nodes, {"x": ["n", 3]}, {"y": [stated, 3]}, constants)
        assert shapes(contract) == [("n", 3), ("y_0", 3)], stated


def test_a_size_that_the_graph_states_wrongly_is_corrected(tmp_path: Path) -> None:
    """Exporters write the size of their example as a constant."""
    contract = resolved(tmp_path, [RELU], {"x": ["n", "L"]}, {"y": ["n", 7]})
    assert shapes(contract) == [("n", "L")] * 2


def test_an_output_of_another_rank_gets_that_of_its_runs(tmp_path: Path) -> None:
    """Converters of trees state a number where a table comes out."""
    contract = resolved(tmp_path, [RELU], {"x": [None, 3]}, {"y": []})
    assert shapes(contract) == [("batch", 3), ("batch", 3)]


def test_multiples_are_found_by_doubling(tmp_path: Path) -> None:
    """A reshape into pairs runs at even sizes alone."""
    node = helper.make_node("Reshape", ["x", "pairs"], ["y"])
    constants = {"pairs": np.array([-1, 2])}
    contract = resolved(tmp_path, [node], {"x": [None]}, {"y": [None, 2]}, constants)
    assert shapes(contract) == [("x_0",), ("y_0", 2)]


def test_a_model_that_runs_nowhere_keeps_its_names(tmp_path: Path) -> None:
    """The error is told by the step after it."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    constants = {"shape": np.array([1009, -1])}
    contract = resolved(tmp_path, [node], {"x": ["n", "m"]}, {"y": [1009, None]}, constants)
    assert shapes(contract) == [("n", "m"), (1009, "y_1")]


def test_two_stated_names_of_one_size_stay_two(tmp_path: Path) -> None:
    """A mask may have one row for all: that the sizes are equal is not for the names to say."""
    node = helper.make_node("Mul", ["x", "mask"], ["y"])
    given = {"x": ["n", "length"], "mask": ["m", None]}
    contract = resolved(tmp_path, [node], given, {"y": ["n", "length"]})
    assert shapes(contract) == [("n", "length"), ("m", "length"), ("n", "length")]
