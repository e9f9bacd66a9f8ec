"""int8 by blocks reaches into loops, and rows give the same results together as alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marship.optimizing.passes import int8_blocks
from marship.optimizing.source import ExportedModel
from marship.proof import graph, parity

WIDTH = 512
TURNS = 6


@pytest.fixture
def looped(tmp_path: Path) -> Path:
    """Rows are multiplied, and then in each turn of a loop again."""
    generator = np.random.default_rng(0)
    weights = {
        name: generator.normal(scale=WIDTH**-0.5, size=(WIDTH, WIDTH)).astype(np.float32)
        for name in ("first", "again")
    }
    row = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "again"], ["wide"]),
            helper.make_node("Tanh", ["wide"], ["next"]),
            helper.make_node("Identity", ["go"], ["goes_on"]),
        ],
        "body",
        [
            row("turn", TensorProto.INT64, []),
            row("go", TensorProto.BOOL, []),
            row("x", TensorProto.FLOAT, ["batch", WIDTH]),
        ],
        [
            row("goes_on", TensorProto.BOOL, []),
            row("next", TensorProto.FLOAT, ["batch", WIDTH]),
        ],
    )
    whole = helper.make_graph(
        [
            helper.make_node("MatMul", ["audio", "first"], ["begun"]),
            helper.make_node("Loop", ["turns", "", "begun"], ["answer"], body=body),
        ],
        "looped",
        [row("audio", TensorProto.FLOAT, ["batch", WIDTH])],
        [row("answer", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            *(numpy_helper.from_array(array, name) for name, array in weights.items()),
            numpy_helper.from_array(np.array(TURNS), "turns"),
        ],
    )
    path = tmp_path / "looped.onnx"
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def test_rows_are_predicted_as_alone_to_the_bit(looped: Path, tmp_path: Path) -> None:
    """Else rounding to int8 would magnify a last bit from turn to turn, and texts would differ."""
    target = tmp_path / "int8.onnx"
    int8_blocks.build(ExportedModel(looped, graph.contract_of(looped), None), target)
    (loop,) = (node for node in onnx.load(target).graph.node if node.op_type == "Loop")
    assert "MatMulNBits" in {node.op_type for node in loop.attribute[0].g.node}
    run = parity.runner(target)
    rows = np.random.default_rng(1).normal(size=(7, WIDTH)).astype(np.float32)
    together = run({"audio": rows})["answer"]
    alone = np.concatenate([run({"audio": row[None]})["answer"] for row in rows])
    assert np.array_equal(together, alone)
    assert np.abs(together - parity.runner(looped)({"audio": rows})["answer"]).max() < 0.05
