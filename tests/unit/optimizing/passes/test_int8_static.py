"""Static int8: what calibration data it can be built from."""

from pathlib import Path

import numpy as np
import pytest

from marship.contract import Contract, TensorSpec
from marship.optimizing.passes import int8_static
from marship.optimizing.source import ExportedModel, NotBuiltError


def test_rows_of_a_model_whose_first_input_has_no_axes_are_refused_with_advice() -> None:
    """Nothing says how many of them are one call."""
    rate, x = TensorSpec("rate", "float32", ()), TensorSpec("x", "float32", ("n", 8))
    contract = Contract(inputs=(rate, x), outputs=(), files=("m.onnx",), digest="", opset=17)
    rows = {"rate": np.ones(40, np.float32), "x": np.zeros((40, 8), np.float32)}
    quantizer = int8_static.Quantizer(
        ExportedModel(Path("m.onnx"), contract, rows), Path("m.onnx"), ("MatMul",)
    )
    with pytest.raises(NotBuiltError, match=r"rate has no axis .* an axis for requests in front"):
        quantizer._reader("MinMax")
