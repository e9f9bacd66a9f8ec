"""Small ONNX models, made by hand."""

from pathlib import Path

import onnx
from onnx import helper

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
