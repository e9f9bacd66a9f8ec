"""Valid ONNX models that take some sizes and values only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models import write_model

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shape = Sequence[int | str | None]


def graph_of(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[int, Shape]],
    outputs: Mapping[str, tuple[int, Shape]],
    constants: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model of these nodes; tensors by name are a type and a shape."""
    graph = helper.make_graph(
        list(nodes),
        path.stem,
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    return write_model(path, graph)


def skip(path: Path, step: int) -> Path:
    """`y = x + grown(pooled(x))`, as a U-Net has it: height and width are multiples of `step`."""
    plane: Shape = ["n", 1, "h", "w"]
    return graph_of(
        path,
        [
            helper.make_node(
                "MaxPool", ["x"], ["small"], kernel_shape=[step, step], strides=[step, step]
            ),
            helper.make_node("Resize", ["small", "", "scales"], ["grown"], mode="nearest"),
            helper.make_node("Add", ["x", "grown"], ["y"]),
        ],
        {"x": (FLOAT, plane)},
        {"y": (FLOAT, plane)},
        {"scales": np.array([1, 1, step, step], np.float32)},
    )


def listener(path: Path, kernel: int) -> Path:
    """A convolution over sound without padding: (n, length) to (n, 1, frames)."""
    return graph_of(
        path,
        [
            helper.make_node("Unsqueeze", ["sound", "one"], ["channel"]),
            helper.make_node("Conv", ["channel", "w"], ["y"], strides=[kernel // 2]),
        ],
        {"sound": (FLOAT, ["n", "length"])},
        {"y": (FLOAT, ["n", 1, "frames"])},
        {"one": np.array([1]), "w": np.ones((1, 1, kernel), np.float32) / kernel},
    )


def edges(path: Path) -> Path:
    """Messages along the edges of a graph: `y = x`, plus `x[source]` at each edge's target."""
    nodes: Shape = ["nodes", 4]
    return graph_of(
        path,
        [
            helper.make_node("Gather", ["edge_index", "zero"], ["source"], axis=0),
            helper.make_node("Gather", ["edge_index", "one"], ["target"], axis=0),
            helper.make_node("Gather", ["x", "source"], ["sent"]),
            helper.make_node("Unsqueeze", ["target", "axis"], ["places"]),
            helper.make_node("ScatterND", ["x", "places", "sent"], ["y"], reduction="add"),
        ],
        {"x": (FLOAT, nodes), "edge_index": (INT64, [2, "edges"])},
        {"y": (FLOAT, nodes)},
        {"zero": np.array(0), "one": np.array(1), "axis": np.array([1])},
    )
