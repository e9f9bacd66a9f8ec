"""Static int8: weights and activations, with scales that were found on training data.

Needs: `calibration.npz` in the run folder, training inputs by name; matrix products or
convolutions with constant weights.
Guarantees: the same inputs and outputs, in float32; rows do not influence each other, since
all scales are constants. Weights have one scale for each output channel. The file holds
QuantizeLinear and DequantizeLinear pairs (QDQ) of the ONNX standard, which every provider reads.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marship.contract import Arrays
from marship.optimize.source import NotBuiltError, Source
from marship.parity import first_line

NAME = "int8_static"
PRODUCTS = ["MatMul", "Gemm"]
CONVOLUTIONAL = [
    *PRODUCTS,
    "Conv",
    "Add",
    "Mul",
    "Relu",
    "Clip",
    "Concat",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Sigmoid",
    "LeakyRelu",
    "Resize",
]
"""Between convolutions all stays in int8; elsewhere only products gain, the rest would lose."""

BATCH_ROWS = 16


def build(source: Source, target: Path) -> None:
    """Write the quantized model to `target`.

    Raises:
        NotBuiltError: Training data is missing, there is nothing to quantize, or ONNX Runtime
            cannot do it.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    from marship.optimize.prepare import check_operators, operators, prepared

    if source.calibration is None:
        raise NotBuiltError("the run folder holds no calibration.npz with training inputs")
    check_operators(source.path, [*PRODUCTS, "Conv"])
    with prepared(source, target.parent) as model:
        try:
            quantize_static(
                model,
                target,
                _reader(source.calibration, _rows_at_once(source)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=CONVOLUTIONAL if "Conv" in operators(model) else PRODUCTS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                use_external_data_format=source.has_outside_weights,
                extra_options={"MatMulConstBOnly": True},
            )
        except Exception as error:  # the quantizer raises errors of many unrelated types
            raise NotBuiltError(first_line(error)) from error


def _rows_at_once(source: Source) -> int:
    size = source.contract.inputs[0].shape[0]
    return BATCH_ROWS if isinstance(size, str) else size


def _reader(rows: Arrays, at_once: int) -> Any:  # noqa: ANN401  onnxruntime ships no types
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the same
        def __init__(self) -> None:
            self.batches = _batches(rows, at_once)

        def get_next(self) -> Arrays | None:
            return next(self.batches, None)

    return Reader()


def _batches(rows: Arrays, at_once: int) -> Iterator[Arrays]:
    count = len(next(iter(rows.values())))
    for start in range(0, count - at_once + 1, at_once) or range(1):
        yield {name: array[start : start + at_once] for name, array in rows.items()}
