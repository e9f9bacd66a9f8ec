"""float16: weights and activations in half precision.

Needs: an execution provider that computes in float16. The CPU provider of ONNX Runtime 1.32
has no such kernels on x86: it casts to float32 and back around them, which made an MLP and a
CNN 1.3 and 1.5 times slower, and the Attention operator of opset 23 crashes its loader.
Guarantees: the same inputs and outputs, in float32.
"""

from pathlib import Path

from marship.optimizing.source import ExportedModel, NotBuiltError
from marship.proof.parity import first_line

NAME = "float16"
PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


def build(source: ExportedModel, target: Path) -> None:
    """Write the converted model to `target`.

    Raises:
        NotBuiltError: No provider here computes in float16, or the model cannot be converted.
    """
    import onnx
    import onnxruntime
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if not set(PROVIDERS) & set(onnxruntime.get_available_providers()):
        raise NotBuiltError("the CPU provider computes in float32 and would only add casts")
    try:
        model = convert_float_to_float16(onnx.load(str(source.path)), keep_io_types=True)
        onnx.save(model, str(target), save_as_external_data=source.has_outside_weights)
    except Exception as error:  # the converter raises errors of many unrelated types
        raise NotBuiltError(first_line(error)) from error
