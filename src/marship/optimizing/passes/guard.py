"""Keeps float layers float: ONNX Runtime would otherwise quantize some of them by itself.

Where a Conv or a Gemm takes a dequantized input and its output is quantized, ONNX Runtime 1.32
quantizes its float weights when it loads the file, all with one scale (WeightBiasQuantization in
its optimizer/qdq_transformer). For a depthwise convolution of EfficientNet-Lite0 that gave five
times the noise of int8 with per-channel scales. It does so only if the input has a single scale.
So the input of such a layer is dequantized with per-channel scales that are all equal: the
same numbers, in the same time.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

GUARDED = ("Conv", "Gemm")


def keep_float(path: Path, names: Collection[str]) -> None:
    """Rewrite a quantized model so that the nodes of these names stay float."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.input else None
        if (
            node.name in names
            and node.op_type in GUARDED
            and maker is not None
            and maker.op_type == "DequantizeLinear"
        ):
            nodes.append(_dequantized_by_channel(graph, node, maker, constants))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(path))


def _dequantized_by_channel(graph: Any, node: Any, maker: Any, constants: dict[str, Any]) -> Any:  # noqa: ANN401  onnx's messages
    """A new node that dequantizes this node's input; its constants are added to the graph."""
    from onnx import helper, numpy_helper

    channels = _channels(node, constants[node.input[1]])
    name = f"{node.name}_float_input"
    own = [f"{name}_scale", f"{name}_zero_point"]
    for place, constant in zip(own, maker.input[1:], strict=True):
        value = numpy_helper.to_array(constants[constant])
        graph.initializer.append(numpy_helper.from_array(np.repeat(value, channels), place))
    node.input[0] = name
    return helper.make_node("DequantizeLinear", [maker.input[0], *own], [name], name, axis=1)


def _channels(node: Any, weight: Any) -> int:  # noqa: ANN401  onnx's messages
    """How many channels a layer takes, in axis 1 of its input."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return int(weight.dims[1] * given.get("group", 1))
    return int(weight.dims[1] if given.get("transB") else weight.dims[0])
