"""Block-wise int8: weights in int8 with a scale for each block of 64, also within loops.

Needs: matrix products with constant weights, and a loop, whose body the other passes do not
reach. No data. The operator is ONNX Runtime's MatMulNBits of com.microsoft; it quantizes
activations dynamically in each call, row by row and block by block.
Guarantees: the same inputs and outputs, in float32; rows do not influence each other. Embedding
tables stay float.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marship.optimizing.source import ExportedModel, NotBuiltError
from marship.proof.parity import first_line

NAME = "int8_blocks"
BLOCK = 64
"""Up to this block size ONNX Runtime's sums are batch invariant, to the bit; from 128 on they
differ in the last bits, which the next layer's rounding to int8 magnifies."""
BITS = 8
INT8_PRODUCTS = 4
"""The operator's accuracy_level: products of int8 numbers, summed up in int32."""


def build(source: ExportedModel, target: Path) -> None:
    """Write the quantized model to `target`.

    Raises:
        NotBuiltError: There is nothing to quantize, or ONNX Runtime cannot do it.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    from marship.optimizing.passes.prepare import check_operators, prepared

    check_operators(source.path, ["MatMul", "Gemm"])
    if len(list(_graphs(onnx.load(str(source.path), load_external_data=False).graph))) == 1:
        raise NotBuiltError("the graph has no loop, so the other passes reach all of it")
    with prepared(source, target.parent) as path:
        model = onnx.load(str(path))
        _write_products_plainly(model.graph)
        quantizer = MatMulNBitsQuantizer(
            model, bits=BITS, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_PRODUCTS
        )
        try:
            quantizer.process()
            model = quantizer.model.model
            _remove_unused(model.graph)
            onnx.save(model, str(target), save_as_external_data=source.has_outside_weights)
        except Exception as error:  # the quantizer raises errors of many unrelated types
            raise NotBuiltError(first_line(error)) from error


def _graphs(graph: Any) -> Iterator[Any]:  # noqa: ANN401  onnx's messages
    """A graph and those within it: the bodies of loops and branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _write_products_plainly(graph: Any) -> None:  # noqa: ANN401  the same
    """Rewrite each Gemm that only multiplies by transposed weights as the equivalent MatMul."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for inner in _graphs(graph):
        for node in inner.node:
            if not _is_transposed_product(node, constants):
                continue
            name = f"{node.input[1]}_transposed"
            weights = numpy_helper.to_array(constants[node.input[1]])
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weights.T), name))
            plain = helper.make_node("MatMul", [node.input[0], name], node.output, node.name)
            node.CopyFrom(plain)


def _is_transposed_product(node: Any, constants: Mapping[str, Any]) -> bool:  # noqa: ANN401  the same
    given = {attribute.name: attribute for attribute in node.attribute}
    return (
        node.op_type == "Gemm"
        and node.input[1] in constants
        and not any(node.input[2:])  # adds nothing
        and "transB" in given
        and given["transB"].i == 1
        and ("transA" not in given or given["transA"].i == 0)
        and ("alpha" not in given or given["alpha"].f == 1)
    )


def _remove_unused(graph: Any) -> None:  # noqa: ANN401  the same
    """Remove the weights that were quantized."""
    used = {name for inner in _graphs(graph) for node in inner.node for name in node.input}
    used |= {value.name for inner in _graphs(graph) for value in inner.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
