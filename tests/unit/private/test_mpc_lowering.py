"""ONNX graphs as programs of three parties: what they compute, and what is refused."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from marship.errors import LoadError, ModelError
from marship.private.mpc import lowering, nodes
from marship.serving.private.mpc import rehearsal, ring, shares
from marship.serving.private.mpc.model import SharedModel
from marship.serving.private.mpc.program import Card, SharedProgram
from trios import contents, open_outputs, write_graph, write_mlp

RNG = np.random.default_rng(0)


def program_of(ordered: list[nodes.Node]) -> SharedProgram:
    """The program of ordered nodes, with a golden row of zeros."""
    return SharedProgram(
        "m", "1.0", "00", ordered[0].size, nodes.steps(ordered), 16.0, 1.0, 1, 2.0**-6,
        tuple(Card(n, "", "", "") for n in range(3)), ("", "", ""),
    )  # fmt: skip


def shared_outputs(model: Path, rows: Any) -> Any:
    """What three parties in this process compute of float rows, (rows, output size)."""
    ordered = nodes.ordered(lowering.lower(model, contents(model, golden=rows).contract))
    nodes.check_bounds(ordered, 16.0)
    program = SharedProgram.from_json(program_of(ordered).to_json())
    weights = [array.ravel() for node in ordered for array in node.weights]
    golden = np.zeros(program.input_size + program.output_size)
    parts = shares.deal(ring.encode(np.concatenate([*weights, golden])))
    models = [SharedModel(program, n, part) for n, part in enumerate(parts)]
    return ring.decode(rehearsal.run(models, ring.encode(rows.reshape(len(rows), -1))))


def operations(model: Path, rows: Any) -> list[str]:
    """The program's operations."""
    lowered = lowering.lower(model, contents(model, golden=rows).contract)
    return [node.operation for node in nodes.ordered(lowered)[1:]]


def tensors(**arrays: Any) -> list[onnx.TensorProto]:
    """Constants by name."""
    return [
        numpy_helper.from_array(
            array if np.asarray(array).dtype == np.int64 else np.asarray(array, np.float32), name
        )
        for name, array in arrays.items()
    ]


def node(kind: str, *inputs: str, out: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node that is named after its output."""
    return helper.make_node(kind, ["x", *inputs], [out], f"the_{kind}", **attributes)


PICTURE = (3, 6, 5)
NORM = tensors(
    gain=RNG.random(3) + 0.5, offset=RNG.normal(size=3), mean=RNG.normal(size=3),
    variance=RNG.random(3) + 0.5,
)  # fmt: skip
CASES: Mapping[str, tuple[list[onnx.NodeProto], tuple[int, ...], tuple[int, ...], Any]] = {
    "conv": (
        [node("Conv", "w", "b", pads=[1, 0, 2, 1], strides=[2, 1])],
        PICTURE, (4, 4, 4), tensors(w=RNG.normal(size=(4, 3, 3, 3)) / 5, b=RNG.normal(size=4)),
    ),
    "groups": (
        [node("Conv", "w", group=3, dilations=[2, 1])],
        PICTURE, (6, 2, 4), tensors(w=RNG.normal(size=(6, 1, 3, 2))),
    ),
    "signal": ([node("Conv", "w")], (2, 9), (3, 7), tensors(w=RNG.normal(size=(3, 2, 3)))),
    "norm": ([node("BatchNormalization", "gain", "offset", "mean", "variance")], PICTURE, PICTURE,
             NORM),
    "max pool": ([node("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0])],
                 PICTURE, (3, 3, 2), None),
    "average": ([node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], PICTURE,
                PICTURE, None),
    "global": ([node("GlobalAveragePool")], PICTURE, (3, 1, 1), None),
    "global max": ([node("GlobalMaxPool")], PICTURE, (3, 1, 1), None),
    "mean": ([node("ReduceMean", "axes", keepdims=0)], PICTURE, (3,),
             tensors(axes=np.array([2, 3]))),
    "tokens": ([node("MatMul", "w")], (4, 5), (4, 2), tensors(w=RNG.normal(size=(5, 2)))),
    "scaled": ([node("Div", "w", out="a"), helper.make_node("Sub", ["c", "a"], ["y"])],
               (4,), (4,), tensors(w=np.array([2.0, 4, 5, 0.5]), c=np.array([1.0]))),
    "square": ([node("Mul", "x")], (4,), (4,), None),
    "power": ([node("Pow", "two")], (4,), (4,), tensors(two=np.array(2.0))),
    "residual": ([node("Gemm", "w", out="a", transB=1), helper.make_node("Relu", ["a"], ["r"]),
                  helper.make_node("Add", ["r", "x"], ["y"])],
                 (4,), (4,), tensors(w=RNG.normal(size=(4, 4)))),
    "difference": ([node("Relu", out="r"), helper.make_node("Sub", ["x", "r"], ["y"])], (4,), (4,),
                   None),
    "larger": ([node("Neg", out="a"), helper.make_node("Max", ["a", "x"], ["y"])], (4,), (4,),
               None),
    "clip": ([node("Clip", "zero")], (4,), (4,), tensors(zero=np.array(0.0))),
    "reshaped": ([node("Reshape", "shape", out="a"), helper.make_node("Relu", ["a"], ["r"]),
                  helper.make_node("Flatten", ["r"], ["y"])],
                 (6, 2), (12,), tensors(shape=np.array([-1, 3, 4]))),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_computed_as_onnx_runtime_does(tmp_path: Path, case: str) -> None:
    """Within some units of 2^-13, for inputs of both signs."""
    graph, given_shape, made, constants = CASES[case]
    model = write_graph(tmp_path / "m.onnx", graph, given_shape, made, constants)
    rows = np.random.default_rng(1).normal(size=(3, *given_shape)).astype(np.float32) * 2
    wanted = open_outputs(model, rows).reshape(3, -1)
    assert np.abs(shared_outputs(model, rows) - wanted).max() < 4e-3


@pytest.mark.parametrize("side", [5, 7, 14, 28, 56, 90, 100, 128])
def test_a_mean_of_any_window_has_no_bias(tmp_path: Path, side: int) -> None:
    """Of outputs about 10, within a share of 2^-11 and some units of 2^-13."""
    given_shape = (1, side, side)
    model = write_graph(
        tmp_path / "m.onnx", [node("GlobalAveragePool")], given_shape, (1, 1, 1), None
    )
    rows = np.random.default_rng(1).normal(size=(2, *given_shape)).astype(np.float32) + 10
    wanted = open_outputs(model, rows).reshape(2, -1)
    apart = shared_outputs(model, rows) - wanted
    assert np.abs(apart).max() < np.abs(wanted).max() * 2.0**-11 + 5 * 2.0**-13


def test_batch_norm_and_factors_are_folded_into_products(tmp_path: Path) -> None:
    """A convolution, its batch norm and a factor are one product; ReLU follows the pool."""
    graph = [
        node("Conv", "w", out="a"),
        helper.make_node("BatchNormalization", ["a", "gain", "offset", "mean", "variance"], ["n"]),
        helper.make_node("Mul", ["n", "factor"], ["f"]),
        helper.make_node("Relu", ["f"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    constants = tensors(
        w=RNG.normal(size=(3, 3, 3, 2)) / 4, factor=np.array([[[0.5]], [[-2]], [[1]]])
    )
    model = write_graph(tmp_path / "m.onnx", graph, PICTURE, (3, 2, 2), [*constants, *NORM])
    rows = np.random.default_rng(1).normal(size=(2, *PICTURE)).astype(np.float32)
    assert operations(model, rows) == ["linear", "maximum", "relu"]
    wanted = open_outputs(model, rows).reshape(2, -1)
    assert np.abs(shared_outputs(model, rows) - wanted).max() < 4e-3


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(0, 99))
def test_any_network_of_dense_layers_is_computed(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    """Whatever its widths and depth."""
    model = write_mlp(tmp_path_factory.mktemp("m") / "m.onnx", tuple(sizes), seed)
    rows = np.random.default_rng(seed).normal(size=(2, sizes[0])).astype(np.float32)
    assert np.abs(shared_outputs(model, rows) - open_outputs(model, rows)).max() < 5e-3


REFUSED = {
    "softmax": ([node("Softmax")], (4,), (4,), None, "leave softmax to the client"),
    "sigmoid": ([node("Sigmoid")], (4,), (4,), None, "train with ReLU"),
    "norm": ([node("LayerNormalization", "w")], (4,), (4,), tensors(w=np.ones(4)),
             "train with batch norm"),
    "attention": ([node("MatMul", "x")], (4, 4), (4, 4), None, "two values that depend"),
    "transposed": ([node("Transpose", perm=[0, 2, 1])], (2, 3), (3, 2), None, "is not supported"),
    "over rows": ([node("ReduceMean", "axes", keepdims=1)], (4,), (4,),
                  tensors(axes=np.array([0])), "of each whole channel"),
    "relu6": ([node("Clip", "zero", "six")], (4,), (4,),
              tensors(zero=np.array(0.0), six=np.array(6.0)), "use ReLU for ReLU6"),
    "cube": ([node("Pow", "three")], (4,), (4,), tensors(three=np.array(3.0)), "exponent must"),
    "floor": ([node("Max", "c")], (4,), (4,), tensors(c=np.ones((1, 4))), r"relu\(x - c\) \+ c"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path: Path, case: str) -> None:
    """One line with the operator, the node's name, and what to do."""
    graph, given_shape, made, constants, reason = REFUSED[case]
    model = write_graph(tmp_path / "m.onnx", graph, given_shape, made, constants)
    contract = contents(model, golden=np.zeros((2, *given_shape), np.float32)).contract
    with pytest.raises(ModelError, match=reason) as caught:
        lowering.lower(model, contract)
    assert graph[0].op_type in str(caught.value)
    assert graph[0].name in str(caught.value)


def test_float64_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    """ONNX Runtime's own error would come at packaging, after an export that said yes."""
    model = write_mlp(tmp_path / "m.onnx", (4, 2), 0)
    contract = contents(model, golden=np.zeros((2, 4), np.float32)).contract
    double = replace(contract, inputs=(replace(contract.inputs[0], dtype="float64"),))
    with pytest.raises(ModelError, match=r"both float32, got x: float64.*model\.float\(\)"):
        lowering.lower(model, double)


def test_values_that_may_leave_the_range_are_refused(tmp_path: Path) -> None:
    """The bound is computed for every input within the limit, and says at which node."""
    constants = tensors(w=np.full((4, 4), 2000.0))
    model = write_graph(tmp_path / "m.onnx", [node("Gemm", "w")], (4,), (4,), constants)
    ordered = nodes.ordered(lowering.lower(model, contents(model).contract))
    with pytest.raises(ModelError, match=r"got up to 1.28e\+05 at the_Gemm"):
        nodes.check_bounds(ordered, 16.0)
    nodes.check_bounds(ordered, 1.0)


def test_bounds_are_those_of_rounded_weights(tmp_path: Path) -> None:
    """A weight of 0.51 units becomes a whole one: exact ones would stay within the limit."""
    constants = tensors(
        wide=np.full((1, 4096), 2000.0),
        small=np.full((4096, 1), 0.51 * 2.0**-13),
        last=np.array(5.0),
    )
    graph = [
        node("MatMul", "wide", out="a"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "small"], ["b"]),
        helper.make_node("Relu", ["b"], ["s"]),
        helper.make_node("Mul", ["s", "last"], ["y"], "the_last"),
    ]
    model = write_graph(tmp_path / "m.onnx", graph, (1,), (1,), constants)
    ordered = nodes.ordered(lowering.lower(model, contents(model).contract))
    exact = 5 * 16 * 2000 * 4096 * 0.51 * 2.0**-13
    assert exact < 0.7 * ring.LIMIT
    with pytest.raises(ModelError, match="at the_last"):
        nodes.check_bounds(ordered, 16.0)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_bounds_hold_for_every_input(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """No output leaves its interval, at corners of the inputs neither."""
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    model = write_mlp(tmp_path_factory.mktemp("m") / "m.onnx", tuple(sizes), 3)
    ordered = nodes.ordered(lowering.lower(model, contents(model).contract))
    found: dict[int, Any] = {}
    for each in ordered:
        found[id(each)] = nodes.interval(each, [found[id(one)] for one in each.inputs], 2.0)
    low, high = found[id(ordered[-1])]
    corners = data.draw(
        st.lists(st.sampled_from([-2.0, -0.5, 0.0, 2.0]), min_size=sizes[0], max_size=sizes[0])
    )
    outputs = open_outputs(model, [corners])[0]
    assert (low - 1e-4 <= outputs).all()
    assert (outputs <= high + 1e-4).all()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_program_is_refused_with_one_error(data: Any) -> None:
    """Whatever is changed in its JSON: `LoadError`, or a program that is checked."""
    steps = (nodes.ProgramStep("linear", (0,), 8, taps=4), nodes.ProgramStep("relu", (1,), 8))
    cards = tuple(Card(n, "", "", "") for n in range(3))
    whole = SharedProgram("m", "1", "0", 4, steps, 16.0, 1.0, 1, 0.1, cards, ("", "", "")).to_json()
    text = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(LoadError):
        assert isinstance(SharedProgram.from_json(bytes(text)).output_size, int)
