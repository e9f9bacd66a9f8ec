"""int8 on processors whose kernels cut the sums of 8-bit products."""

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from marship.contract import Contract, TensorSpec
from marship.optimizing.passes import int8_dynamic, int8_static, saturation
from marship.optimizing.source import ExportedModel

CPUINFO = Path("/proc/cpuinfo")
DOTS = {"avx512_vnni", "avx_vnni", "amx_int8"}
PASSES = [int8_static, int8_dynamic]
FLOAT = TensorProto.FLOAT


@pytest.fixture
def source(tmp_path: Path) -> ExportedModel:
    """A product whose sums are the largest that there may be: inputs and weights of one sign."""
    draw = np.random.default_rng(0)
    weights = draw.uniform(0.9, 1, (64, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "sums",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 32])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    x, y = TensorSpec("x", "float32", ("n", 64)), TensorSpec("y", "float32", ("n", 32))
    contract = Contract(inputs=(x,), outputs=(y,), files=(path.name,), digest="", opset=17)
    rows = {"x": draw.uniform(0.8, 1, (64, 64)).astype(np.float32)}
    rows["x"][:, 0] = 0
    return ExportedModel(path, contract, rows)


def weights_of(path: Path) -> np.ndarray:
    """The quantized ones."""
    tensors = map(numpy_helper.to_array, onnx.load(path).graph.initializer)
    (found,) = (tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 2)
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="processors of ARM add in 32 bits")
def test_the_processor_is_tried() -> None:
    """Its instructions say the same."""
    line = next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags"))
    assert saturation.saturates() == (not DOTS & set(line.split()))


@pytest.mark.parametrize("made", PASSES)
def test_int8_is_right_on_this_processor(made: object, source: ExportedModel) -> None:
    """Within the rounding of weights and inputs, also where all numbers have one sign."""
    target = source.path.with_name("int8.onnx")
    made.build(source, target)  # type: ignore[attr-defined]
    for path in (source.path, target):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, source.calibration)
        if path == source.path:
            wanted = found
    assert np.abs(found / wanted - 1).max() < 0.02


@pytest.mark.parametrize("made", PASSES)
@pytest.mark.parametrize(("is_cut", "largest"), [(True, 64), (False, 127)])
def test_weights_have_one_bit_less_where_sums_are_cut(
    made: object,
    is_cut: bool,
    largest: int,
    source: ExportedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the report tells."""
    monkeypatch.setattr(saturation, "saturates", lambda: is_cut)
    target = source.path.with_name("int8.onnx")
    details = made.build(source, target)  # type: ignore[attr-defined]
    assert details.get("weight_bits") == (7 if is_cut else None)
    assert largest - 1 <= np.abs(weights_of(target).astype(int)).max() <= largest
