"""ONNX Runtime as the reference: the same file, asked without marship."""

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from collection.sample import NotRunError

from marship.contract import WIDENED, Arrays

_NARROW = re.compile(r"tensor\((bfloat16|float8|float4|u?int[24]\))")
"""Types that `InferenceSession.run` does not return."""


def outputs(path: Path, inputs: Mapping[str, Any]) -> Arrays:
    """The outputs by name; sequences and the like are left out.

    bfloat16, float8 and int4 are in a type of NumPy that holds their values.

    Raises:
        NotRunError: ONNX Runtime does not load the file, or does not run it on these inputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        names = [tensor.name for tensor in session.get_outputs()]
        is_narrow = any(_NARROW.match(tensor.type) for tensor in session.get_outputs())
        if not is_narrow and all(map(_is_plain, inputs.values())):
            values = session.run(names, dict(inputs))
        else:
            feeds = {name: _ort_value(value) for name, value in inputs.items()}
            values = [_plain(value) for value in session.run_with_ort_values(names, feeds)]
    except Exception as error:  # its exceptions have no common base class
        raise NotRunError(" ".join(str(error).split())) from error
    found = zip(names, values, strict=True)
    return {name: value for name, value in found if isinstance(value, np.ndarray)}


def _is_plain(value: object) -> bool:
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OU":
        return True
    return value.dtype.isbuiltin == 1  # the kind of ml_dtypes' float8_e5m2 is f, too


def _ort_value(value: Any) -> Any:  # noqa: ANN401  onnxruntime ships no types
    """Types that NumPy lacks, such as bfloat16, go in by their bits, as ONNX stores them."""
    import onnxruntime

    if _is_plain(value):
        return onnxruntime.OrtValue.ortvalue_from_numpy(value)
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    stored = np.frombuffer(onnx.numpy_helper.from_array(value).raw_data, np.uint8)
    width = value.dtype.itemsize
    bits = np.zeros(value.size, f"uint{8 * width}")  # its size is the tensor's, even of int4
    bits.view(np.uint8)[: len(stored)] = stored
    shaped = bits.reshape(value.shape)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(shaped, kind)


def _plain(value: Any) -> Any:  # noqa: ANN401
    """The array, or None for a sequence: it was run, and that is what counts."""
    if not value.is_tensor():
        return None
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.element_type())
    if kind.isbuiltin == 1 or kind.kind == "O":
        return value.numpy()
    stored = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    tensor = onnx.TensorProto(data_type=value.element_type(), dims=value.shape(), raw_data=stored)
    return widened(onnx.numpy_helper.to_array(tensor))


def widened(array: Any) -> Any:  # noqa: ANN401  an array, or another value of ONNX
    """An array of ml_dtypes in the type in which it is served; others as they are."""
    if not isinstance(array, np.ndarray) or array.dtype.name not in WIDENED:
        return array
    return array.astype(WIDENED[array.dtype.name].dtype)
