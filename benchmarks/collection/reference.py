"""ONNX Runtime as the reference: the same file, asked without marship."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from collection.sample import NotRunError

from marship.contract import Arrays


def outputs(path: Path, inputs: Mapping[str, Any]) -> Arrays:
    """The outputs by name; those that NumPy has no form for are left out.

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
        if all(_is_plain(value) for value in inputs.values()):
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
    """Types that NumPy lacks, such as bfloat16, go in by their bits."""
    import onnxruntime

    if _is_plain(value):
        return onnxruntime.OrtValue.ortvalue_from_numpy(value)
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    bits = value.view(f"uint{8 * value.dtype.itemsize}")
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def _plain(value: Any) -> Any:  # noqa: ANN401
    try:
        return value.numpy()
    except Exception:  # a type that NumPy lacks: it was run, and that is what counts
        return None
