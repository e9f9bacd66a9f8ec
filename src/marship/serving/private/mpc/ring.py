"""Numbers of the protocol: 64-bit words, which wrap, with fixed point values in them.

A value v is the word round(v 2^13) modulo 2^64, negative ones as two's complement. A product of two
has 26 fraction bits until it is rescaled.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from marship.contract import Array

FRACTION_BITS = 13
LIMIT = 2.0**16
"""Every value of a model stays below it, which packing proves. The comparison needs the difference
of two values in 31 bits, and a rescaling fails with a probability that grows with it: see
docs/private.md."""

Words = npt.NDArray[np.uint64]

_IR_VERSION, _OPSET = 10, 17


def encode(values: Array) -> Words:
    """Fixed point words of finite values, same shape.

    Example:
        >>> encode(np.array([1.0, -0.5])).view(np.int64).tolist()
        [8192, -4096]
    """
    scaled = np.round(np.asarray(values, np.float64) * (1 << FRACTION_BITS))
    return scaled.astype(np.int64).view(np.uint64)


def decode(words: Words) -> npt.NDArray[np.float64]:
    """The values of fixed point words, float64, same shape.

    Example:
        >>> decode(encode(np.array([1.5, -2.0]))).tolist()
        [1.5, -2.0]
    """
    return words.view(np.int64).astype(np.float64) / (1 << FRACTION_BITS)


def product(left: Words, right: Words) -> Words:
    """The matrix product modulo 2^64, (n, k) by (k, m), on one thread.

    ONNX Runtime's is 3 to 10 times as fast as NumPy's, which has no BLAS for integers.
    """
    outputs: list[Words] = _session().run(None, {"left": left, "right": right})
    return outputs[0]


@cache
def _session() -> Any:  # noqa: ANN401  onnxruntime has no types
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(_MODEL, options, providers=["CPUExecutionProvider"])


def _field(number: int, value: bytes | int) -> bytes:
    """One field of a protocol buffer: a number below 128, or bytes below 128 of them."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def _tensor(name: bytes) -> bytes:
    """A matrix of uint64 of any size: ValueInfoProto of onnx.proto."""
    shape = _field(1, b"") * 2
    kind = _field(1, _field(1, 13) + _field(2, shape))
    return _field(1, name) + _field(2, kind)


def _model() -> bytes:
    """`output = left @ right`, as onnx.proto writes it: a worker need not have onnx installed."""
    node = _field(1, b"left") + _field(1, b"right") + _field(2, b"output") + _field(4, b"MatMul")
    graph = _field(1, node) + _field(2, b"product")
    graph += _field(11, _tensor(b"left")) + _field(11, _tensor(b"right"))
    graph += _field(12, _tensor(b"output"))
    opset = _field(1, b"") + _field(2, _OPSET)
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, opset)


_MODEL = _model()
