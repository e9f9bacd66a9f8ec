"""Small ONNX models, made by hand."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 10
OPSET = 20


def write_model(path: Path, graph: onnx.GraphProto) -> Path:
    """Save a checked model of one graph."""
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def row_filter(path: Path) -> Path:
    """`y = x[x[:, 0] > 0]`, which states as many rows as it takes: float32 (n, 2) to (n, 2)."""
    constants = {"start": np.array([0]), "stop": np.array([1]), "axis": np.array([1])}
    constants["zero"] = np.array(0, np.float32)  # type: ignore[assignment]
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["x", "start", "stop", "axis"], ["column"]),
            helper.make_node("Squeeze", ["column", "axis"], ["first"]),
            helper.make_node("Greater", ["first", "zero"], ["kept"]),
            helper.make_node("Compress", ["x", "kept"], ["y"], axis=0),
        ],
        "row_filter",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return write_model(path, graph)


def wide(path: Path, columns: int) -> Path:
    """`y = x` in each of many columns: uint8 (n,) to float32 (n, columns)."""
    ones = numpy_helper.from_array(np.ones((1, columns), np.float32), "ones")
    axis = numpy_helper.from_array(np.array([1]), "axis")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["values", "axis"], ["column"]),
            helper.make_node("Mul", ["column", "ones"], ["y"]),
        ],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [ones, axis],
    )
    return write_model(path, graph)


def centring(path: Path) -> Path:
    """`y = x - mean(x)` over the rows of a call: float32 (n, 2) to (n, 2)."""
    axis = numpy_helper.from_array(np.array([0]), "axis")
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x", "axis"], ["mean"]),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        "centring",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [axis],
    )
    return write_model(path, graph)


def labels(path: Path) -> Path:
    """Text in and out, and numbers from text: words of ai.onnx.ml, upper case, joined.

    `word` (n, 1) to `upper` (n,), in upper case; to `joined` (n, 1), with `mark` (n, 1) behind it;
    to `number` (n, 1), int64: 1 for "red", 2 for "grün", else -1.
    """
    nodes = [
        helper.make_node("Reshape", ["word", "flat"], ["row"]),
        helper.make_node("StringNormalizer", ["row"], ["upper"], case_change_action="UPPER",
                         locale="C.UTF-8"),
        helper.make_node("StringConcat", ["word", "mark"], ["joined"]),
        helper.make_node("LabelEncoder", ["word"], ["number"], domain="ai.onnx.ml",
                         keys_strings=["red", "grün"], values_int64s=[1, 2], default_int64=-1),
    ]  # fmt: skip
    text, whole = TensorProto.STRING, TensorProto.INT64
    graph = helper.make_graph(
        nodes,
        "labels",
        [helper.make_tensor_value_info(name, text, ["n", 1]) for name in ("word", "mark")],
        [
            helper.make_tensor_value_info("upper", text, ["n"]),
            helper.make_tensor_value_info("joined", text, ["n", 1]),
            helper.make_tensor_value_info("number", whole, ["n", 1]),
        ],
        [numpy_helper.from_array(np.array([-1]), "flat")],
    )
    sets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 4)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=IR_VERSION), path)
    return path


def same_text(path: Path) -> Path:
    """`y = x` for text of shape (n, 1)."""
    values = [helper.make_tensor_value_info(n, TensorProto.STRING, ["n", 1]) for n in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    return write_model(path, helper.make_graph([node], "same", values[:1], values[1:]))
