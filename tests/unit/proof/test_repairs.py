"""Files that ONNX Runtime runs and ONNX's checker refuses are repaired, and give the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from marship import PackageSettings, package
from marship.contract import Contract
from marship.errors import ModelError
from marship.proof import graph, repairs
from marship.trust import archive

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def tensor(name: str, axes: Any, kind: int = TensorProto.FLOAT) -> Any:
    """A tensor of a graph; without a shape where `axes` is None."""
    return helper.make_tensor_value_info(name, kind, axes)


def model_of(nodes: list[Any], inputs: Any, outputs: Any, stored: Any = (), ir: int = 8) -> Any:
    """A model of an IR version."""
    body = helper.make_graph(nodes, "g", inputs, outputs, list(stored))
    opset = [helper.make_opsetid("", 8 if ir == 3 else 17)]
    return helper.make_model(body, opset_imports=opset, ir_version=ir)


def shuffled(seed: int) -> ModelProto:
    """A chain with branches, one inside an If, whose nodes stand in any order."""
    names = ["x", *(f"t{i}" for i in range(9))]
    dice = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Add", [names[dice.integers(i + 1)], names[i]], [names[i + 1]])
        for i in range(9)
    ]
    inner = [
        helper.make_node("Mul", ["t8", "t3"], ["half"]),
        helper.make_node("Neg", ["half"], ["out"]),
    ]
    branch = helper.make_graph(inner, "b", [], [tensor("out", ["n", 4])])
    nodes += [
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
    ]
    mixed = [nodes[place] for place in dice.permutation(len(nodes))]
    return model_of(mixed, [tensor("x", ["n", 4])], [tensor("y", ["n", 4])])


def old(*, named: bool) -> ModelProto:
    """Of IR version 3, with an initializer that is no input, and one that may be."""
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32) * 2, name) for name in "wv"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("MatMul", ["m", "v"], ["y"]),
    ]
    inputs = [tensor("x", ["n", 4]), *([tensor("v", [4, 4])] if named else [])]
    return model_of(nodes, inputs, [tensor("y", ["n", 4])], weights, ir=3)


def shapeless() -> ModelProto:
    """A model whose output has no shape."""
    return model_of(
        [helper.make_node("Relu", ["x"], ["y"])], [tensor("x", ["n", 4])], [tensor("y", None)]
    )


MODELS = {
    **{f"unsorted {seed}": shuffled(seed) for seed in range(8)},
    "initializers": old(named=False),
    "initializers, one an input": old(named=True),
    "output without a shape": shapeless(),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_repaired_model_is_valid_and_gives_the_same(name: str, tmp_path: Path) -> None:
    """The checker refuses the file and takes the repaired one, of which only `x` is an input."""
    model = MODELS[name]
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    repaired = ModelProto.FromString(model.SerializeToString())
    assert repairs.repair(repaired)
    onnx.save(repaired, tmp_path / "m.onnx")
    contract = graph.contract_of(tmp_path / "m.onnx")
    assert [spec.name for spec in contract.inputs] == ["x"]
    assert contract.outputs[0].shape == ("n", 4)
    before, after = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, {"x": X})[0]
        for one in (model, repaired)
    )
    np.testing.assert_array_equal(before, after)


def test_a_valid_model_stays_as_it_is(linear_onnx: Path) -> None:
    """Its bytes, and so its digest, are the user's."""
    model = onnx.load(linear_onnx)
    before = model.SerializeToString()
    assert not repairs.repair(model)
    assert model.SerializeToString() == before


def test_a_circle_of_nodes_is_left_to_the_checker(tmp_path: Path) -> None:
    """It cannot be sorted: the file is refused in one line."""
    nodes = [helper.make_node("Neg", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    model = model_of(nodes, [tensor("x", [4])], [tensor("b", [4])])
    assert not repairs.repair(model)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"must be a valid ONNX model, got: [^.]*\. Export"):
        graph.read(tmp_path / "m.onnx")


def branching(shape: Any) -> ModelProto:
    """An If whose branches give x as it is, or in the shape."""
    to = numpy_helper.from_array(np.array(shape, np.int64))
    reshaped = [
        helper.make_node("Constant", [], ["to"], value=to),
        helper.make_node("Reshape", ["x", "to"], ["b"]),
    ]
    branches = {
        "then_branch": ([helper.make_node("Identity", ["x"], ["a"])], "a"),
        "else_branch": (reshaped, "b"),
    }
    bodies = {
        name: helper.make_graph(nodes, name, [], [tensor(output, None)])
        for name, (nodes, output) in branches.items()
    }
    return model_of(
        [helper.make_node("If", ["flag"], ["y"], **bodies)],
        [tensor("x", ["n", 4]), tensor("flag", [], TensorProto.BOOL)],
        [tensor("y", None)],
    )


def packed(model: ModelProto, folder: Path, **settings: Any) -> Contract:
    """The contract of the model's archive."""
    onnx.save(model, folder / "m.onnx")
    made = package(folder / "m.onnx", PackageSettings(model_store=folder, **settings))
    return Contract.from_json(archive.read(made).contents("contract.json"))


def test_runs_find_the_axes_of_an_output(tmp_path: Path) -> None:
    """Where shape inference does not; branches that differ in them are refused by name."""
    assert len(packed(branching([-1, 2]), tmp_path).outputs[0].shape) == 2
    with pytest.raises(ModelError, match="output y must have one number of axes, got 1 and 2"):
        packed(branching([-1]), tmp_path)


def test_an_example_shows_the_axes_of_an_input(tmp_path: Path) -> None:
    """A graph may take any number of them, so that without one it is asked for."""
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"])], [tensor("x", None)], [tensor("y", None)]
    )
    with pytest.raises(ModelError, match=r"x must be a tensor of known rank.* --example"):
        packed(model, tmp_path)
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 3, 5), np.float32))
    contract = packed(model, tmp_path, example=tmp_path / "inputs.npz", profile="throughput")
    assert [len(spec.shape) for spec in (*contract.inputs, *contract.outputs)] == [3, 3]
    assert contract.batch_axis
