"""Graphs as plans: what can be encrypted gives what ONNX Runtime gives, and the rest is named."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from marship.contract import Arrays
from marship.errors import ModelError
from marship.private import compiler, rings
from marship.private.segments import SegmentedGraph
from marship.serving.private.packing import Packing
from marship.serving.private.plan import Affine, HePlan, Power, depth
from private_runs import HIDDEN, INPUTS, LINEAR, OUTPUTS, SQUARE, WEIGHTS, node, numbers, segmented

ONES = np.ones(HIDDEN, np.float32)
EXTRA = WEIGHTS | {
    "half": np.array(0.5, np.float32),
    "two": np.array(2.0, np.float32),
    "three": np.array(3.0, np.float32),
    "four": np.array(4.0, np.float32),
    "slopes": np.linspace(0.5, 1.5, HIDDEN, dtype=np.float32),
    "shift": np.linspace(-1, 1, HIDDEN, dtype=np.float32),
    "mean": 0.1 * ONES,
    "variance": 2 * ONES,
    "some": np.array([1, 1, 0, 0, 0], np.float32),
}
HEAD = [node("MatMul", "x", "a", out="h")]
TAIL = [node("MatMul", "s", "b", out="p"), node("Add", "p", "c", out="y")]


def middle(*nodes: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A matrix, what makes s of h, and another matrix."""
    return [*HEAD, *nodes, *TAIL]


GRAPHS: dict[str, tuple[list[onnx.NodeProto], list[str]]] = {
    "linear": (LINEAR, ["affine"]),
    "square": (SQUARE, ["affine", "square", "affine"]),
    "power 2": (middle(node("Pow", "h", "two", out="s")), ["affine", "square", "affine"]),
    "power 3": (middle(node("Pow", "h", "three", out="s")), ["affine", "cube", "affine"]),
    "0.5 h h + slope h + shift": (
        middle(
            node("Mul", "h", "half", out="f"),
            node("Mul", "f", "h", out="q"),
            node("Mul", "h", "slopes", out="l"),
            node("Add", "q", "l", out="r"),
            node("Add", "r", "shift", out="s"),
        ),
        ["affine", "square", "affine"],
    ),
    "cubic": (
        middle(
            node("Mul", "h", "h", out="q"),
            node("Mul", "q", "h", out="k"),
            node("Mul", "k", "slopes", out="f"),
            node("Sub", "f", "q", out="r"),
            node("Add", "r", "h", out="t"),
            node("Add", "t", "half", out="s"),
        ),
        ["affine", "cube", "affine"],
    ),
    "batch norm before a square": (
        middle(
            node("BatchNormalization", "h", "slopes", "shift", "mean", "variance", out="n"),
            node("Mul", "n", "n", out="s"),
        ),
        ["affine", "square", "affine"],
    ),
    "fourth power, of squares": (
        middle(node("Mul", "h", "h", out="q"), node("Mul", "q", "q", out="s")),
        ["affine", "square", "affine", "square", "affine"],
    ),
    "a skip around a square": (
        [
            *HEAD,
            node("Mul", "h", "h", out="s"),
            node("MatMul", "s", "b", out="p"),
            node("MatMul", "h", "b", out="v"),
            node("MatMul", "x", "d", out="w"),
            node("Add", "p", "v", out="t"),
            node("Add", "t", "w", out="y"),
        ],
        ["affine", "square", "affine"],
    ),
    "ending with a square": (
        [node("MatMul", "x", "d", out="h"), node("Mul", "h", "h", out="y")],
        ["affine", "square", "affine"],
    ),
}


def kinds(plan: HePlan) -> list[str]:
    """The steps in words."""
    powers = {True: "square", False: "cube"}
    return [
        "affine" if isinstance(one, Affine) else powers[one.linear is None] for one in plan.steps
    ]


def plan_of(graph: SegmentedGraph) -> HePlan:
    """The plan of a graph."""
    return rings.fitted(compiler.compiled(graph), graph.size(graph.output), 4.0)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_plan_gives_what_onnx_runtime_gives(name: str, tmp_path: Path) -> None:
    """With as few steps as there can be: shifts and factors go into the matrices."""
    nodes, wanted = GRAPHS[name]
    graph = segmented(tmp_path, nodes, weights=EXTRA)
    plan = plan_of(graph)
    assert kinds(plan) == wanted
    rows, outputs = graph.split({"x": numbers(20, INPUTS, seed=9)})
    assert plan.compute(rows) == pytest.approx(outputs, rel=1e-4, abs=1e-5)


def images(activation: list[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], Arrays]:
    """Convolution, norm, activation, average pooling, flatten, dense."""
    nodes = [
        node("Conv", "x", "k", "kb", out="v", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "v", "g", "gb", "m", "n", out="h"),
        *activation,
        node("AveragePool", "s", out="w", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "w", out="f"),
        node("Gemm", "f", "e", "c", out="y"),
    ]
    weights = {
        "k": numbers(4, 2, 3, 3, seed=1), "kb": numbers(4, seed=2), "g": numbers(4, seed=3) + 1,
        "gb": numbers(4, seed=4), "m": numbers(4, seed=5), "n": np.ones(4, np.float32),
        "e": numbers(36, OUTPUTS, seed=6), "c": numbers(OUTPUTS, seed=7),
    }  # fmt: skip
    return nodes, weights


def test_convolutions_are_asked_about(tmp_path: Path) -> None:
    """Norm and pooling, too; the input is packed by phases where that takes fewer rotations."""
    nodes, weights = images([node("Mul", "h", "h", out="s")])
    graph = segmented(tmp_path, nodes, weights=weights, given=(2, 12, 12))
    plan = plan_of(graph)
    assert kinds(plan) == ["affine", "square", "affine"]
    assert plan.given is not None
    rows, outputs = graph.split({"x": numbers(5, 2, 12, 12, seed=9)})
    assert plan.compute(rows) == pytest.approx(outputs, rel=1e-4, abs=1e-5)
    assert HePlan.from_bytes(plan.to_bytes()).packing == plan.packing


REFUSED: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "Relu": (middle(node("Relu", "h", out="s")), "got Relu. Train with --activation square"),
    "Sigmoid": (middle(node("Sigmoid", "h", out="s")), "Leave it out of the model"),
    "Softmax": (
        [*LINEAR[:1], node("Softmax", "p", out="y")],
        "node y must be computable on encrypted values, got Softmax. Leave it out",
    ),
    "LayerNormalization": (
        middle(node("LayerNormalization", "h", "slopes", out="s")),
        "Use batch norm, whose figures are fixed",
    ),
    "fourth power": (middle(node("Pow", "h", "four", out="s")), "got Pow. Sums, products with"),
    "a product of two values": (
        [node("MatMul", "x", "d", out="h"), node("Add", "h", "c", out="v"),
         node("MatMul", "x", "d", out="w"), node("Mul", "v", "w", out="y")],
        "got Mul. Sums, products with constants, squares and cubes",
    ),
    "a quotient": (middle(node("Div", "half", "h", out="s")), "got Div"),
    "squares of some values": (
        middle(node("Mul", "h", "h", out="q"), node("Mul", "q", "some", out="r"),
               node("Add", "r", "h", out="s")),
        "must have the same degree for all its values",
    ),
    "whole numbers": (
        middle(node("Cast", "h", out="i", to=7), node("Cast", "i", out="s", to=1)),
        "must be sums and products with constants, got something else",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_node_that_cannot_be_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    """In one line."""
    nodes, said = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        plan_of(segmented(tmp_path, nodes, weights=EXTRA))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_max_pooling_is_refused(tmp_path: Path) -> None:
    """Average pooling does what it does, nearly."""
    nodes, weights = images([node("MaxPool", "h", out="s", kernel_shape=[1, 1])])
    with pytest.raises(ModelError, match=r"got MaxPool\. Use AveragePool"):
        plan_of(segmented(tmp_path, nodes, weights=weights, given=(2, 12, 12)))


def test_a_model_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    """With the number of levels that there can be."""
    nodes, weights, last = [], dict(WEIGHTS), "x"
    for layer in range(8):
        weights[f"w{layer}"] = numbers(INPUTS, INPUTS, seed=layer)
        nodes += [node("MatMul", last, f"w{layer}", out=f"h{layer}")]
        nodes += [node("Mul", f"h{layer}", f"h{layer}", out=f"s{layer}")]
        last = f"s{layer}"
    nodes += [node("MatMul", last, "d", out="y")]
    with pytest.raises(ModelError, match="at most 8192 values in a layer and 12 levels"):
        plan_of(segmented(tmp_path, nodes, weights=weights))


@pytest.mark.parametrize(
    ("largest", "levels", "degree"), [(4, 1, 4096), (1e3, 1, 8192), (4, 3, 8192), (4, 6, 16384)]
)
def test_the_smallest_ring_is_taken(largest: float, levels: int, degree: int) -> None:
    """That has 128 bits of security, room for the outputs, and enough of each value."""
    steps: list[Any] = [Affine({0: np.eye(4)}, np.zeros(4))]
    while depth(tuple(steps)) < levels - 1:
        steps.append(Power(len(steps)))
    if levels > 1:
        steps.append(Affine({len(steps): np.eye(4)}, np.zeros(4)))
    found = compiler.Compilation(tuple(steps), (4,), (4,))
    ring = rings.fitted(found, 4, largest).ring
    assert (ring.degree, ring.levels) == (degree, levels)
    assert 2.0 ** (ring.bits[0] - ring.scale_bits) > 4 * largest


@pytest.mark.parametrize(
    ("inputs", "outputs", "degree"), [(512, 3, 4096), (2048, 3, 8192), (4096, 2, 16384)]
)
def test_a_few_outputs_of_many_inputs_leave_zeros(inputs: int, outputs: int, degree: int) -> None:
    """Shifted copies, or all sums at once, would fill all slots; zeros tell wrong answers."""
    matrix = np.random.default_rng(0).normal(size=(outputs, inputs))
    found = compiler.Compilation((Affine({0: matrix}, np.zeros(outputs)),), (inputs,), (outputs,))
    plan = rings.fitted(found, outputs, 4.0)
    assert plan.zeros
    assert plan.ring.degree == degree
    assert plan.packing == Packing(inputs)


def test_a_last_matrix_that_leaves_no_zeros_is_refused() -> None:
    """With its own sizes, not those that fit."""
    found = compiler.Compilation((Affine({0: np.ones((3, 5000))}, np.zeros(3)),), (5000,), (3,))
    with pytest.raises(ModelError, match=r"at most 4096 inputs, .* got 5000 inputs and 3 outputs"):
        rings.fitted(found, 3, 4.0)


def test_outputs_that_are_too_large_are_refused() -> None:
    """They would need all bits."""
    found = compiler.Compilation((Affine({0: np.eye(4)}, np.zeros(4)),), (4,), (4,))
    with pytest.raises(ModelError, match="must be below 131072, got 1e"):
        rings.fitted(found, 4, 1e9)


def test_outputs_that_never_change_are_the_clients(tmp_path: Path) -> None:
    """A score of -1e4 for what is no item costs no bits."""
    weights = dict(WEIGHTS)
    weights["d"] = WEIGHTS["d"].copy()
    weights["d"][:, 1] = 0
    weights["c"] = np.array([1, -1e4, 2], np.float32)
    found = compiler.compiled(segmented(tmp_path, LINEAR, weights=weights))
    assert found.constants == ((1, -1e4),)
    assert np.abs(rings.fitted(found, 3, 4.0).compute(np.ones((1, INPUTS)))).max() == 1e4


def test_a_model_may_be_encrypted_from_a_tensor_on(tmp_path: Path) -> None:
    """What leads to it is a model of its own, for the client."""
    nodes = middle(node("Relu", "h", out="s"))
    graph = segmented(tmp_path, nodes)
    cut = SegmentedGraph.load(tmp_path / "model.onnx", graph.row, "s")
    rows, outputs = cut.split({"x": numbers(9, INPUTS)})
    assert rows.shape == (9, HIDDEN)
    assert plan_of(cut).compute(rows) == pytest.approx(outputs, rel=1e-4, abs=1e-5)
    assert [one.op_type for one in cut.encoder().graph.node] == ["MatMul", "Relu"]


def test_no_other_way_may_lead_around_that_tensor(tmp_path: Path) -> None:
    """The client sends that tensor alone."""
    nodes = [
        *HEAD, node("Relu", "h", out="s"), node("MatMul", "s", "b", out="p"),
        node("MatMul", "x", "d", out="w"), node("Add", "p", "w", out="y"),
    ]  # fmt: skip
    graph = segmented(tmp_path, nodes)
    cut = SegmentedGraph.load(tmp_path / "model.onnx", graph.row, "s")
    with pytest.raises(ModelError, match="node y must depend on s alone, got w, too"):
        plan_of(cut)
    with pytest.raises(ModelError, match="got none named nix"):
        SegmentedGraph.load(tmp_path / "model.onnx", graph.row, "nix")
