"""proof.operators: what a graph says of randomness, of scales for a whole call, of branches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marship.errors import ModelError
from marship.packaging.step import PackageSettings, package
from marship.proof import graph, operators, parity

MS = "com.microsoft"


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model from x to y, both float32[n, 3]."""
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        constants,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in ((MS, 1), ("own", 1))]
    return helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", 21), *opsets],
        ir_version=10,
        functions=functions,
    )


def inside_a_branch(node: onnx.NodeProto) -> onnx.ModelProto:
    """The node in a branch of an If that depends on a size."""
    out = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    other = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=1),
        helper.make_node("Squeeze", ["s"], ["size"]),
        helper.make_node("Greater", ["size", "three"], ["c"]),
        helper.make_node(
            "If",
            ["c"],
            ["y"],
            then_branch=helper.make_graph([node], "then", [], [out]),
            else_branch=helper.make_graph(
                [helper.make_node("Identity", ["x"], ["o"])], "else", [], [other]
            ),
        ),
    ]
    return model(nodes, [numpy_helper.from_array(np.array(3), "three")])


def inside_a_function(node: onnx.NodeProto) -> onnx.ModelProto:
    """The node in a function of the model's own."""
    function = helper.make_function(
        "own",
        "Noisy",
        ["x"],
        [node.output[0]],
        [node],
        [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)],
    )
    return model([helper.make_node("Noisy", ["x"], ["y"], domain="own")], functions=[function])


RANDOM = [
    helper.make_node("RandomUniformLike", ["x"], ["r"], "noise"),
    helper.make_node("RandomNormalLike", ["x"], ["r"], "noise", seed=3.0),
    helper.make_node("Bernoulli", ["x"], ["r"], "noise"),
    helper.make_node("RandomNormal", [], ["r"], "noise", shape=[1, 3]),
    helper.make_node("RandomUniform", [], ["r"], "noise", shape=[1, 3]),
    helper.make_node("Multinomial", ["x"], ["r"], "noise", sample_size=3),
]


@pytest.mark.parametrize("node", RANDOM, ids=lambda node: node.op_type)
@pytest.mark.parametrize("place", ["graph", "branch", "function"])
def test_random_operators_are_refused_by_name_wherever_they_stand(
    node: onnx.NodeProto, place: str
) -> None:
    """The operator and the node are named, and what to do."""
    whole = {
        "graph": lambda: model([node, helper.make_node("Add", ["x", "r"], ["y"])]),
        "branch": lambda: inside_a_branch(node),
        "function": lambda: inside_a_function(node),
    }[place]()
    with pytest.raises(
        ModelError, match=rf"random operators: {node.op_type} '.*noise.*'"
    ) as caught:
        operators.refuse_random(whole)
    assert "out of forward" in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "random"), [(True, True), (False, False), (None, False), ("input", True)]
)
@pytest.mark.parametrize(("kind", "domain", "place"), [("Dropout", "", 2), ("BiasDropout", MS, 4)])
def test_dropout_is_random_where_it_is_in_training_mode(
    kind: str, domain: str, place: int, *, mode: object, random: bool
) -> None:
    """Also where the mode is computed; without a mode it passes its input on."""
    inputs = ["x", *[""] * (place - 1)] + (["mode"] if mode is not None else [])
    nodes = [helper.make_node(kind, inputs, ["y"], "drop", domain=domain)]
    constants = []
    if isinstance(mode, bool):
        constants = [numpy_helper.from_array(np.array(mode), "mode")]
    elif mode == "input":
        nodes.insert(0, helper.make_node("IsNaN", ["x"], ["mode"]))
    found = list(operators.random_operators(model(nodes, constants)))
    assert found == ([f"{kind} 'drop'"] if random else [])


def test_a_random_file_is_not_packed(tmp_path: Path) -> None:
    """The error comes before anything is run or registered."""
    path = tmp_path / "random.onnx"
    node = helper.make_node("RandomNormalLike", ["x"], ["y"], "noise")
    onnx.save(model([node]), path)
    with pytest.raises(ModelError, match="RandomNormalLike 'noise'"):
        package(path, PackageSettings(model_store=tmp_path))


SCALED = [
    helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "scale"),
    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
]


def test_one_scale_for_a_whole_call_mixes_rows(tmp_path: Path) -> None:
    """No batch axis, and the evidence says which operator it was."""
    path = tmp_path / "scaled.onnx"
    onnx.save(model(SCALED), path)
    found = parity.row_influence(graph.contract_of(path), parity.runner(path))
    assert found is not None
    assert not found.agrees
    expected = "DynamicQuantizeLinear 'scale' quantizes with one scale for the whole call"
    assert found.reason == expected
    assert str(found) == f"requests run alone: {expected}"
    assert found.evidence()["absolute"] is None


@pytest.mark.parametrize("kind", ["DynamicQuantizeMatMul", "DynamicQuantizeLSTM"])
def test_quantizing_operators_of_onnx_runtime_are_known(kind: str) -> None:
    """Inside functions, too; what is given its scale, or scales within a row, is not meant."""
    node = helper.make_node(kind, ["x", "w", "s"], ["y"], "scale", domain=MS)
    for whole in (model([node]), inside_a_function(node), inside_a_branch(node)):
        assert [reason.split()[0] for reason in operators.facts(whole).mixing] == [kind]
    row_wise = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain=MS, K=3, N=3)
    assert not operators.facts(model([row_wise])).mixing


def test_a_quantized_constant_mixes_nothing() -> None:
    """No row can change its scale."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["c"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    constant = numpy_helper.from_array(np.ones(3, np.float32), "c")
    assert not operators.facts(model(nodes, [constant])).mixing


def test_numbers_that_values_are_compared_with_are_found() -> None:
    """Through a cast as well; those of comparisons come first, zero is left out."""
    nodes = [
        helper.make_node("Min", ["x", "seven"], ["m"]),
        helper.make_node("Cast", ["ten"], ["t"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["m", "t"], ["over"]),
        helper.make_node("Less", ["m", "zero"], ["under"]),
        helper.make_node("Where", ["over", "x", "m"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.float32(7), "seven"),
        numpy_helper.from_array(np.array(10), "ten"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    assert operators.facts(model(nodes, constants)).constants == (10.0, 7.0)
