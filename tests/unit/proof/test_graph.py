"""marship.proof.graph: an ONNX file read, checked and described, without being run."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from marship.contract import TensorSpec
from marship.contract.tolerance import Tolerance
from marship.errors import ModelError, UsageError
from marship.proof import graph, parity


@pytest.fixture
def outside(linear_onnx: Path, tmp_path: Path) -> Path:
    """The linear model with its weights in `weights.bin` beside it."""
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.load(linear_onnx),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return path


def test_the_contract_is_what_the_graph_states(lookup_onnx: Path) -> None:
    """Names, types, named axes and opset; what must be proven is left out."""
    found = graph.contract_of(
        lookup_onnx, pad_values={"ids": 0}, bounds={"length": (1, 5)}, tolerance=Tolerance(1, 0)
    )
    assert found.inputs == (TensorSpec("ids", "int64", ("batch", "length"), 0),)
    assert found.outputs == (TensorSpec("total", "float32", ("batch",)),)
    assert found.files == ("lookup.onnx",)
    assert found.opset == 20
    assert found.batch_axis is None
    assert found.bounds == {"length": (1, 5)}
    assert found.tolerance == Tolerance(1, 0)


@pytest.mark.parametrize(
    ("imports", "opset"), [({"ai.onnx.ml": 3}, 0), ({"ai.onnx.ml": 3, "": 20}, 20)]
)
def test_a_file_may_use_operators_of_another_domain_only(
    tmp_path: Path, imports: dict[str, int], opset: int
) -> None:
    """As converters of trees write it: its opset is 0 then, and it runs as any other."""
    nodes = [
        helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0])
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    sets = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
    path = tmp_path / "scaler.onnx"
    body = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(body, opset_imports=sets, ir_version=9), path)
    found, cases = parity.describe(graph.contract_of(path), parity.runner(path))
    assert (found.opset, found.batch_axis) == (opset, "n")
    np.testing.assert_array_equal(cases[0].outputs["y"], 2 * cases[0].inputs["x"])


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    """The message has its path."""
    with pytest.raises(UsageError, match="no such file"):
        graph.read(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x07"])
def test_a_damaged_file_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    """One line, whatever the checker says."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="valid ONNX model") as caught:
        graph.contract_of(path)
    assert "\n" not in str(caught.value)


def test_a_cut_off_file_is_a_model_error(linear_onnx: Path, tmp_path: Path) -> None:
    """A copy that was interrupted is not taken for a model."""
    path = tmp_path / "model.onnx"
    path.write_bytes(linear_onnx.read_bytes()[:-20])
    with pytest.raises(ModelError):
        graph.contract_of(path)


def test_the_digest_covers_outside_weights(outside: Path) -> None:
    """One changed byte of them is another model."""
    before = graph.contract_of(outside)
    assert before.files == ("model.onnx", "weights.bin")
    weights = bytearray((outside.parent / "weights.bin").read_bytes())
    weights[0] ^= 1
    (outside.parent / "weights.bin").write_bytes(weights)
    assert graph.contract_of(outside).digest != before.digest


def test_missing_outside_weights_are_a_model_error(outside: Path) -> None:
    """Neither a crash nor a contract without them."""
    (outside.parent / "weights.bin").unlink()
    with pytest.raises(ModelError):
        graph.contract_of(outside)


def test_weights_outside_of_the_folder_are_refused(outside: Path, tmp_path: Path) -> None:
    """A model cannot make marship read or pack files from elsewhere."""
    shutil.copy(outside.parent / "weights.bin", tmp_path.parent / "weights.bin")
    model = onnx.load(outside, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.bin"
    outside.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError):
        graph.external_files(outside)
    with pytest.raises(ModelError):
        graph.contract_of(outside)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "uint8", "bool"])
def test_random_inputs_have_the_stated_type_and_shape(dtype: str) -> None:
    """Axes take their sizes by name; the same seed gives the same values."""
    spec = TensorSpec("x", dtype, ("batch", 3, "length"))
    first = graph.random_input(spec, {"batch": 2, "length": 4}, seed=1)
    assert (str(first.dtype), first.shape) == (dtype, (2, 3, 4))
    np.testing.assert_array_equal(
        first, graph.random_input(spec, {"batch": 2, "length": 4}, seed=1)
    )


def typed(kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    """A value `v` of a type."""
    return helper.make_value_info("v", kind)


def tensor(element: int, shape: list[str] | None = None) -> onnx.TypeProto:
    """A tensor's type."""
    return helper.make_tensor_type_proto(element, ["n"] if shape is None else shape)


T = TensorProto
REFUSED = {
    **{
        f"tensor({name.lower()})": (tensor(value), "Cast it in the model")
        for name, value in T.DataType.items()
        if name.startswith(("BFLOAT", "FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
    },
    "tensor(complex64)": (tensor(T.COMPLEX64), "two tensors"),
    "tensor(complex128)": (tensor(T.COMPLEX128), "two tensors"),
    "sequence(tensor(float))": (
        helper.make_sequence_type_proto(tensor(T.FLOAT)),
        "a name of its own",
    ),
    "sequence(map(string, float))": (
        helper.make_sequence_type_proto(helper.make_map_type_proto(T.STRING, tensor(T.FLOAT))),
        "a name of its own",
    ),
    "map(int64, float)": (helper.make_map_type_proto(T.INT64, tensor(T.FLOAT)), "a name"),
    "optional(tensor(int64))": (helper.make_optional_type_proto(tensor(T.INT64)), "always there"),
}


@pytest.mark.parametrize("words", REFUSED)
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_type_that_no_request_can_hold_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, side: str
) -> None:
    """Input or output, its type in words, and what to do: in one line."""
    kind, advice = REFUSED[words]
    plain = helper.make_tensor_value_info("w", T.FLOAT, ["n"])
    ends = ([typed(kind)], [plain]) if side == "input" else ([plain], [typed(kind)])
    model = helper.make_model(helper.make_graph([], "g", *ends))
    monkeypatch.setattr(graph, "read", lambda _: model)
    with pytest.raises(ModelError) as caught:
        graph.contract_of(tmp_path / "m.onnx")
    assert str(caught.value).startswith(
        f"{side} v must be a tensor of a type that NumPy has, got {words}. "
    )
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tensor_without_a_rank_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request's shape could not be checked."""
    values = [helper.make_tensor_value_info(name, T.FLOAT, None) for name in "xy"]
    model = helper.make_model(helper.make_graph([], "g", values[:1], values[1:]))
    monkeypatch.setattr(graph, "read", lambda _: model)
    with pytest.raises(ModelError, match=r"input x must be a tensor of known rank, got tensor\("):
        graph.contract_of(tmp_path / "m.onnx")


def test_random_text_is_text() -> None:
    """ONNX strings are Python strings in an array of objects."""
    found = graph.random_input(TensorSpec("x", "str", ("batch",)), {"batch": 2}, seed=0)
    assert found.tolist() == ["text", "text"]
