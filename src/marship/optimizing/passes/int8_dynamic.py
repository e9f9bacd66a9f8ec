"""Dynamic int8: weights are stored in int8, activations are quantized in each call.

Needs: matrix products, convolutions or LSTMs with constant weights. No data.
Guarantees: the same inputs and outputs, in float32. One scale serves a whole call, so rows of
a batch influence each other a little; `measure.influence` says whether that stays in tolerance.
"""

from pathlib import Path

from marship.optimizing.passes import saturation
from marship.optimizing.source import ExportedModel, NotBuiltError
from marship.proof.parity import first_line

NAME = "int8_dynamic"
OPERATORS = ["MatMul", "Gemm", "Conv", "LSTM"]
"""Not Attention: ONNX Runtime 1.32 replaces it by a different operator of that name."""


def build(source: ExportedModel, target: Path) -> dict[str, int]:
    """Write the quantized model to `target`.

    Returns:
        Details for the report.

    Raises:
        NotBuiltError: There is nothing to quantize, or ONNX Runtime cannot do it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from marship.optimizing.passes.prepare import check_operators, prepared

    check_operators(source.path, OPERATORS)
    with prepared(source, target.parent) as model:
        try:
            quantize_dynamic(
                model,
                target,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=saturation.saturates(),
                use_external_data_format=source.has_outside_weights,
            )
        except Exception as error:  # the quantizer raises errors of many unrelated types
            raise NotBuiltError(first_line(error)) from error
    return saturation.entry()
