"""A model that returns what it is sent, one input and output for each datatype of numbers."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from marship.serving.formats.kserve import DTYPES

WIDTH = 3
NUMBERS = {datatype: dtype for datatype, dtype in DTYPES.items() if dtype != "str"}


def write_echoes(path: Path) -> Path:
    """Write the model: input `in_FP32` becomes output `out_FP32`, rows of three values."""
    inputs, outputs, nodes = [], [], []
    for datatype, dtype in NUMBERS.items():
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        inputs.append(helper.make_tensor_value_info(f"in_{datatype}", kind, ["batch", WIDTH]))
        outputs.append(helper.make_tensor_value_info(f"out_{datatype}", kind, ["batch", WIDTH]))
        nodes.append(helper.make_node("Identity", [f"in_{datatype}"], [f"out_{datatype}"]))
    graph = helper.make_graph(nodes, "echoes", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path
