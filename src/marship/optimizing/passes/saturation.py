"""Whether this processor's int8 kernels saturate, and the weights that they multiply exactly.

Without dot products of 8-bit integers (AVX-512 VNNI and its like) ONNX Runtime multiplies unsigned
bytes by signed ones in pairs, whose sum has 16 bits (vpmaddubsw of x86): 2 * 255 * 127 > 32767 is
cut, and 2 * 255 * 64 = 32640 is not, so weights of 7 bits are exact everywhere.
Source: ONNX Runtime, "Quantize ONNX models", "When to use reduce-range for int8 quantization".
"""

from functools import cache

import numpy as np

DEPTH = 64
"""Products in one sum: kernels for long vectors, not those for what is left over."""


@cache
def saturates() -> bool:
    """Whether sums of products of 8-bit integers are cut here, found by multiplying the largest."""
    import onnxruntime
    from onnx import TensorProto, helper

    types = {"a": TensorProto.UINT8, "c": TensorProto.INT32}
    shapes = {"a": [4, DEPTH], "c": [4, DEPTH]}
    a, c = (helper.make_tensor_value_info(name, types[name], shapes[name]) for name in "ac")
    weights = helper.make_tensor("b", TensorProto.INT8, [DEPTH, DEPTH], [127] * DEPTH * DEPTH)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])], "sums", [a], [c], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (sums,) = session.run(None, {"a": np.full((4, DEPTH), 255, np.uint8)})
    return bool((sums != 255 * 127 * DEPTH).any())


def entry() -> dict[str, int]:
    """What the report says of the weights; nothing where they have all 8 bits."""
    return {"weight_bits": 7} if saturates() else {}
