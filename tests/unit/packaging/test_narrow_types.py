"""Models with bfloat16, float8 and int4 at the border, from the file to answers in every format."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from loaded import Served
from marship import PackageSettings, package
from marship.contract import WIDENED
from marship.errors import ModelError
from marship.serving.formats import kserve
from marship.serving.hosts.direct import routes
from marship.serving.message import Request


def passing(path: Path, narrow: str) -> Path:
    """A file that gives x, of a narrow type, row by row."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, narrow)))
    keeps_infinity = {"saturate": 0} if narrow.startswith("float8") else {}
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["wide"], ["y"], to=kind, **keeps_infinity),
    ]
    x, y = (helper.make_tensor_value_info(name, kind, ["n", 2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y])
    opsets = [helper.make_opsetid("", 25)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=13), str(path))
    return path


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model of bfloat16."""
    folder = tmp_path_factory.mktemp("halves")
    return Served(passing(folder / "m.onnx", "bfloat16"), profile="throughput")


def test_numbers_in_json(halves: Served) -> None:
    """They are rounded to nearest, as ml_dtypes does, alone and in a batch of many requests."""
    assert halves.contract.inputs[0].narrow == "bfloat16"
    assert halves.contract.batch_axis == "n"
    numbers = np.random.default_rng(1).normal(size=(16, 1, 2)).astype(np.float32)
    wanted = numbers.astype(ml_dtypes.bfloat16).astype(np.float32)
    replies = halves.ask(*(json.dumps({"x": rows.tolist()}).encode() for rows in numbers))
    got = [json.loads(reply.body)["y"] for reply in replies]
    np.testing.assert_array_equal(np.float32(got), wanted)


@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16])
def test_npy_takes_float32_and_what_ml_dtypes_saves(halves: Served, kind: Any) -> None:
    """numpy.load reads saved bfloat16 as 2 bytes of nothing; the contract says what they are."""
    numbers = np.asfortranarray([[1.5, -2.0], [3.0, 0.125], [7.0, 1e30]]).astype(kind)
    file = BytesIO()
    np.save(file, numbers)
    (reply,) = halves.ask(file.getvalue(), kind="application/x-npy")
    got = np.load(BytesIO(reply.body))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, numbers.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_kserve_has_bf16(halves: Served) -> None:
    """Raw tensors are 2 bytes a value both ways, and the metadata says so."""
    numbers = np.array([[1.5, -2.0], [np.pi, 1e-30]]).astype(ml_dtypes.bfloat16)
    entry = {"name": "x", "shape": [2, 2], "datatype": "BF16"}
    head = {
        "inputs": [{**entry, "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    headers = {kserve.LENGTH_HEADER.lower(): str(len(text))}
    request = Request(body=text + numbers.tobytes(), headers=headers)
    (reply,), _ = halves.service.reply([request])
    size = int(dict(reply.headers)[kserve.LENGTH_HEADER])
    (output,) = json.loads(reply.body[:size])["outputs"]
    assert (output["datatype"], output["parameters"]) == ("BF16", {"binary_data_size": 8})
    assert reply.body[size:] == numbers.tobytes()
    listed = halves.json({"inputs": [{**entry, "data": numbers.astype(float).ravel().tolist()}]})
    (output,) = listed["outputs"]
    assert output["datatype"] == "BF16"
    np.testing.assert_array_equal(np.float32(output["data"]), np.float32(numbers).ravel())
    entry["datatype"] = "FP32"
    status, message = halves.refusal({"inputs": [{**entry, "data": [1, 2, 3, 4]}]})
    assert (status, "must be BF16" in message) == (400, True)
    facts = json.loads(routes.metadata("m", ["1.0"], halves.contract).body)
    assert facts["inputs"][0]["datatype"] == facts["outputs"][0]["datatype"] == "BF16"


@pytest.mark.parametrize(
    ("narrow", "datatype"), [("float8_e4m3fn", "FP32"), ("int4", "INT8"), ("uint2", "UINT8")]
)
def test_types_without_a_name_in_kserve(narrow: str, datatype: str, tmp_path: Path) -> None:
    """They are served as the type that holds their values; others are refused, and never wrap."""
    served = Served(passing(tmp_path / "m.onnx", narrow), profile="throughput")
    limits = WIDENED[narrow]
    rows = [[limits.low, limits.high], [1, 0]]
    kind = int if datatype != "FP32" else float
    rows = [[kind(value) for value in row] for row in rows]
    assert served.json({"x": rows}) == {"y": rows}
    entry = {"name": "x", "shape": [2, 2], "datatype": datatype, "data": [*rows[0], *rows[1]]}
    (output,) = served.json({"inputs": [entry]})["outputs"]
    assert (output["datatype"], output["data"]) == (datatype, entry["data"])
    bodies = [json.dumps({"x": [[value, 1]]}).encode() for value in (rows[0][1], rows[0][1] + 1)]
    fits, beyond = served.ask(*bodies)
    assert (fits.status, beyond.status) == (200, 400)
    assert f"x must hold values of {narrow}, from" in json.loads(beyond.body)["message"]


@pytest.mark.parametrize("value", [3.4e38, float("inf"), float("nan")])
def test_bfloat16_beyond_its_largest_is_refused(halves: Served, value: float) -> None:
    """It would be infinity, which a client that sends numbers does not mean."""
    file = BytesIO()
    np.save(file, np.array([[value, 1]], np.float32))
    (reply,) = halves.ask(file.getvalue(), kind="application/x-npy")
    assert reply.status == 400


def test_infinity_where_any_value_is_allowed(tmp_path: Path) -> None:
    """A setting of package allows it; float8_e5m2 has infinity, and float8_e4m3fn has none."""
    for narrow, status in (("float8_e5m2", 200), ("float8_e4m3fn", 400)):
        path = passing(tmp_path / f"{narrow}.onnx", narrow)
        served = Served(path, missing_values="any")
        (reply,) = served.ask(b'{"x": [[Infinity, NaN]]}')
        assert reply.status == status
        if status == 200:
            assert reply.body == b'{"y":[[Infinity,NaN]]}'


@pytest.mark.parametrize("kind", [TensorProto.COMPLEX64, TensorProto.FLOAT4E2M1])
def test_other_types_are_refused_by_name(kind: int, tmp_path: Path) -> None:
    """ONNX Runtime computes with neither."""
    x, y = (helper.make_tensor_value_info(name, kind, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "m.onnx"
    opsets = [helper.make_opsetid("", 25)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=13), str(path))
    with pytest.raises(ModelError, match=r"input x must be .* got tensor\((complex64|float4e2m1)"):
        package(path, PackageSettings(model_store=tmp_path))
