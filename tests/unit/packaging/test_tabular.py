"""Classifiers and trees over tables, as converters write them: class names and missing values."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from loaded import Served
from marship import PackageSettings, package
from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Contract,
    GoldenCase,
    write_golden,
)
from marship.errors import ModelError, UsageError
from marship.fit.recipe import Recipe
from marship.packaging.graph import MODEL_FILE
from marship.proof.graph import contract_of

ML, DEFAULT = helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 17)
STRINGS = ("setosa", 'two "quoted", words', "ümlaut, {braces}")
NUMBERS = (0, -7, 12)


def saved(path: Path, nodes: Sequence[Any], *, outputs: Sequence[Any], opsets: Any = ()) -> Path:
    """A file with one input, x: float32[n, 3]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(list(nodes), "g", [x], list(outputs))
    onnx.save(
        helper.make_model(graph, opset_imports=list(opsets or (DEFAULT, ML)), ir_version=9),
        str(path),
    )
    return path


def classifier(path: Path, classes: Sequence[str] | Sequence[int], *, opsets: Any = ()) -> Path:
    """A linear classifier that ends in a ZipMap, as skl2onnx writes it."""
    texts = isinstance(classes[0], str)
    key = TensorProto.STRING if texts else TensorProto.INT64
    named = {"classlabels_strings" if texts else "classlabels_int64s": list(classes)}
    generator = np.random.default_rng(1)
    linear = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["raw_label", "scores"],
        domain="ai.onnx.ml",
        coefficients=generator.normal(size=9).tolist(),
        intercepts=generator.normal(size=3).tolist(),
        post_transform="SOFTMAX",
        classlabels_ints=[0, 1, 2],
    )
    zipped = helper.make_node("ZipMap", ["scores"], ["probability"], domain="ai.onnx.ml", **named)
    kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("probability", helper.make_sequence_type_proto(kind))
    return saved(path, [linear, zipped], outputs=[output], opsets=opsets)


def trees(path: Path, tracks: Sequence[int]) -> Path:
    """One tree over the second column: 10 below 0.5, else 20; a missing value goes by `tracks`."""
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[1, 0, 0],
        nodes_modes=["BRANCH_LT", "LEAF", "LEAF"],
        nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=list(tracks),
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[10.0, 20.0],
    )
    return saved(path, [node], outputs=[y()])


def y(kind: int = TensorProto.FLOAT, columns: int = 1) -> Any:
    """An output of the input's rows."""
    return helper.make_tensor_value_info("y", kind, ["n", columns])


@pytest.mark.parametrize("classes", [STRINGS, NUMBERS], ids=["strings", "numbers"])
def test_probabilities_come_by_the_names_of_classes(classes: Sequence[Any], tmp_path: Path) -> None:
    """A ZipMap's maps are what ONNX Runtime gives for the file as it was, number by number."""
    path = classifier(tmp_path / "c.onnx", classes)
    table = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    (wanted,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": table})
    served = Served(path, profile="throughput")
    assert served.contract.outputs[0].labels == tuple(map(str, classes))
    got = served.json({"x": table.tolist()})["probability"]
    assert [list(row) for row in got] == [list(map(str, classes))] * len(table)
    for row, maps in zip(got, wanted, strict=True):
        named = {str(name): value for name, value in maps.items()}
        assert row == pytest.approx(named, rel=1e-6)
    assert served.json(table.tolist()) == got  # one output, so bare JSON has it alone


def test_requests_of_a_batch_get_their_own_classes(tmp_path: Path) -> None:
    """The fast path over many requests gives what one request after the other gives."""
    served = Served(classifier(tmp_path / "c.onnx", STRINGS), profile="throughput")
    assert served.contract.batch_axis == "n"
    generator = np.random.default_rng(3)
    bodies = [
        json.dumps({"x": generator.normal(size=(rows, 3)).tolist()}).encode()
        for rows in (1, 2, 1, 3, 1, 1, 4, 1, 1, 1)
    ]
    replies = served.ask(*bodies)
    for body, reply in zip(bodies, replies, strict=True):
        alone, together = (json.loads(r.body)["probability"] for r in (served.ask(body)[0], reply))
        assert len(together) == len(json.loads(body)["x"])
        for row, wanted in zip(together, alone, strict=True):
            assert row == pytest.approx(wanted, rel=1e-5)


def test_other_formats_have_the_plain_tensor(tmp_path: Path) -> None:
    """Npy and KServe v2 have no objects by name: they get the table of probabilities."""
    served = Served(classifier(tmp_path / "c.onnx", STRINGS))
    table = np.ones((2, 3), np.float32)
    buffer = BytesIO()
    np.save(buffer, table)
    (reply,) = served.ask(buffer.getvalue(), kind="application/x-npy")
    npy = np.load(BytesIO(reply.body))
    request = {
        "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": table.tolist()}]
    }
    (output,) = served.json(request)["outputs"]
    assert (output["datatype"], output["shape"]) == ("FP32", [2, 3])
    by_name = served.json({"x": table.tolist()})["probability"]
    assert np.array_equal(npy, np.float32([list(row.values()) for row in by_name]))
    assert output["data"] == pytest.approx(npy.ravel().tolist())


def test_a_file_of_ml_operators_alone_gets_its_classes(tmp_path: Path) -> None:
    """The operator that replaces the ZipMap needs an operator set that the file may not import."""
    served = Served(classifier(tmp_path / "c.onnx", NUMBERS, opsets=[ML]))
    (row,) = served.json({"x": [[1, 2, 3]]})["probability"]
    assert sum(row.values()) == pytest.approx(1.0)


def test_probabilities_of_float64_keep_their_type(tmp_path: Path) -> None:
    """skl2onnx writes a ZipMap behind float64, too, which ONNX Runtime refuses to load."""
    path = classifier(tmp_path / "c.onnx", STRINGS)
    model = onnx.load(str(path))
    model.graph.node[1].input[0] = "wide"
    model.graph.node.insert(
        1, helper.make_node("Cast", ["scores"], ["wide"], to=TensorProto.DOUBLE)
    )
    onnx.save(model, str(path))
    served = Served(path)
    assert served.contract.outputs[0].dtype == "float64"
    (row,) = served.json({"x": [[1, 2, 3]]})["probability"]
    assert list(row) == list(STRINGS)
    assert sum(row.values()) == pytest.approx(1.0)


def test_external_data_comes_along_with_a_rewritten_file(tmp_path: Path) -> None:
    """A copy without its maps lies elsewhere, and finds its weights there."""
    path = classifier(tmp_path / "c.onnx", NUMBERS)
    model = onnx.load(str(path))
    weights = np.eye(3, dtype=np.float32) * 2
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    model.graph.node.insert(0, helper.make_node("MatMul", ["x", "w"], ["doubled"]))
    model.graph.node[1].input[0] = "doubled"
    (tmp_path / "data").mkdir()
    onnx.save(model, str(path), save_as_external_data=True, location="data/w.bin", size_threshold=1)
    (row,) = Served(path).json({"x": [[1, 2, 3]]})["probability"]
    (wanted,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": np.float32([[1, 2, 3]])})
    assert row == pytest.approx({str(k): v for k, v in wanted[0].items()})


def test_the_given_file_stays_as_it_was(tmp_path: Path) -> None:
    """The rewritten copy goes into the archive; the file in the user's folder is theirs."""
    path = classifier(tmp_path / "c.onnx", STRINGS)
    before = path.read_bytes()
    Served(path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c-store", "c.onnx"]


@pytest.mark.parametrize("classes", [("a", "a", "b"), (1, 1, 2)])
def test_classes_of_one_name_are_refused(classes: Sequence[Any], tmp_path: Path) -> None:
    """An object would lose one of them."""
    with pytest.raises(ModelError, match="classes of probability must have names of their own"):
        Served(classifier(tmp_path / "c.onnx", classes))


def test_a_table_of_too_many_classes_is_too_large(tmp_path: Path) -> None:
    """Names count to the size of a response, before any of it is written."""
    served = Served(classifier(tmp_path / "c.onnx", ("a" * 4000, "b" * 4000, "c" * 4000)))
    served.service._max_response_bytes = 100_000
    reply = served.ask(json.dumps({"x": [[1, 2, 3]] * 50}).encode())[0]
    assert (reply.status, json.loads(reply.body)["code"]) == (413, "too_large"), reply.body


def test_missing_values_go_the_way_that_the_trees_say(tmp_path: Path) -> None:
    """Null and NaN are missing values where a tree has a way for them."""
    served = Served(trees(tmp_path / "t.onnx", [1, 0, 0]), profile="throughput")
    assert served.contract.inputs[0].takes_missing
    rows = [[0, 0.0, 0], [0, 1.0, 0], [0, None, 0], [None, None, None]]
    assert served.json({"x": rows})["y"] == [[10.0], [20.0], [10.0], [10.0]]
    request = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, None, 1]}]}
    assert served.json(request)["outputs"][0]["data"] == [10.0]
    buffer = BytesIO()
    np.save(buffer, np.array([[1, np.nan, 1]], np.float32))
    (reply,) = served.ask(buffer.getvalue(), kind="application/x-npy")
    assert np.load(BytesIO(reply.body)).tolist() == [[10.0]]


@pytest.mark.parametrize("wrong", [[[0, "1", None]], [[0, None, True]], [[0, {}, None]], [None]])
def test_null_hides_no_other_fault(wrong: Any, tmp_path: Path) -> None:
    """Text, booleans, objects and missing rows beside null stay refused."""
    served = Served(trees(tmp_path / "t.onnx", [1, 0, 0]))
    status, message = served.refusal({"x": wrong})
    assert (status, message[:6]) == (400, "x must"), message


def test_infinity_is_no_missing_value(tmp_path: Path) -> None:
    """A number too large for the type would be one."""
    served = Served(trees(tmp_path / "t.onnx", [1, 0, 0]))
    buffer = BytesIO()
    np.save(buffer, np.array([[1, np.inf, 1]], np.float32))
    (reply,) = served.ask(buffer.getvalue(), kind="application/x-npy")
    assert reply.status == 400
    assert b"or NaN, got infinity" in reply.body


def nodes_with_nan(kind: str) -> list[Any]:
    """Graphs from x to y that ask for NaN, or that only hide it."""
    imputer = helper.make_node(
        "Imputer", ["x"], ["y"], domain="ai.onnx.ml", imputed_value_floats=[7.0],
        replaced_value_float=float("nan"),
    )  # fmt: skip
    return {
        "imputer": [imputer],
        "where": [
            helper.make_node("IsNaN", ["x"], ["gap"]),
            helper.make_node("Sign", ["x"], ["sign"]),
            helper.make_node("Cast", ["gap"], ["one"], to=TensorProto.FLOAT),
            helper.make_node("Where", ["gap", "one", "sign"], ["y"]),
        ],
        "from the other rows": [
            helper.make_node("IsNaN", ["x"], ["gap"]),
            helper.make_node("Sub", ["x", "x"], ["zero"]),
            helper.make_node("Where", ["gap", "zero", "x"], ["some"]),
            helper.make_node("IsNaN", ["some"], ["still"]),
            helper.make_node("Cast", ["gap"], ["one"], to=TensorProto.FLOAT),
            helper.make_node("Where", ["still", "one", "x"], ["filled"]),
            helper.make_node("ReduceMax", ["one"], ["any"], axes=[0], keepdims=1),
            helper.make_node("Add", ["filled", "any"], ["y"]),
        ],
        "identity": [helper.make_node("Identity", ["x"], ["y"])],
        "relu": [helper.make_node("Relu", ["x"], ["y"])],
        "asked, and lets it through": [
            helper.make_node("IsNaN", ["x"], ["gap"]),
            helper.make_node("Cast", ["gap"], ["one"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "one"], ["y"]),
        ],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "takes"),
    [
        ("imputer", True),
        ("where", True),
        ("identity", False),
        ("relu", False),
        ("asked, and lets it through", False),
    ],
)
def test_a_graph_takes_missing_values_where_it_asks_for_them(
    kind: str, takes: bool, tmp_path: Path
) -> None:
    """An operator asks for NaN and no output has it; where it is only hidden it stays refused."""
    path = saved(tmp_path / "g.onnx", nodes_with_nan(kind), outputs=[y(columns=3)])
    served = Served(path)
    assert served.contract.inputs[0].takes_missing is takes
    if takes:
        assert None not in served.json({"x": [[1, None, 2]]})["y"][0]
    else:
        assert "got null" in served.refusal({"x": [[1, None, 2]]})[1]


def test_missing_values_can_be_allowed_and_refused(tmp_path: Path) -> None:
    """The setting decides over what was found."""
    path = saved(tmp_path / "g.onnx", nodes_with_nan("identity"), outputs=[y(columns=3)])
    assert Served(path, missing_values="allow").json({"x": [[1, None, 2]]})["y"] == [[1, None, 2]]
    path = trees(tmp_path / "t.onnx", [1, 0, 0])
    assert "got null" in Served(path, missing_values="refuse").refusal({"x": [[1, None, 2]]})[1]
    with pytest.raises(UsageError, match="missing-values must be one of auto, allow, refuse"):
        package(path, PackageSettings(model_store=tmp_path, missing_values="maybe"))


def test_a_column_without_an_imputer_takes_no_missing_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another one does; the refusal names the column and the setting, and packing says so."""
    places = [onnx.numpy_helper.from_array(np.array(part), str(part[0])) for part in ([0], [1, 2])]
    nodes = [
        helper.make_node("Constant", [], ["first"], value=places[0]),
        helper.make_node("Constant", [], ["rest"], value=places[1]),
        helper.make_node("Gather", ["x", "first"], ["a"], axis=1),
        helper.make_node("Gather", ["x", "rest"], ["b"], axis=1),
        helper.make_node(
            "Imputer", ["a"], ["c"], domain="ai.onnx.ml", imputed_value_floats=[7.0],
            replaced_value_float=float("nan"),
        ),
        helper.make_node("Concat", ["c", "b"], ["y"], axis=1),
    ]  # fmt: skip
    served = Served(saved(tmp_path / "g.onnx", nodes, outputs=[y(columns=3)]))
    assert "missing values (null, NaN) are taken in x[:, 0]" in capsys.readouterr().err
    assert served.json({"x": [[None, 1, 2]]})["y"] == [[7.0, 1.0, 2.0]]
    for row in ([1, None, 2], [None, 1, None]):
        status, message = served.refusal({"x": [row]})
        assert status == 400
        assert "got NaN or null. If the model takes missing values" in message
        assert "--missing-values allow" in message


def test_a_refused_gap_names_the_setting(tmp_path: Path) -> None:
    """Null and NaN in an input that takes none, in any format."""
    path = saved(tmp_path / "g.onnx", nodes_with_nan("identity"), outputs=[y(columns=3)])
    served = Served(path)
    assert "--missing-values allow" in served.refusal({"x": [[1, None, 2]]})[1]
    buffer = BytesIO()
    np.save(buffer, np.array([[1, np.nan, 1]], np.float32))
    (reply,) = served.ask(buffer.getvalue(), kind="application/x-npy")
    assert reply.status == 400
    assert b"--missing-values allow" in reply.body
    assert "--missing-values" not in served.refusal({"x": [[1, {}, 2]]})[1]


@pytest.mark.parametrize("choice", ["auto", "allow"])
def test_rows_that_meet_only_in_missing_values_are_not_joined(choice: str, tmp_path: Path) -> None:
    """A gap in one row shifts all others: no rows without gaps show it, but the graph does."""
    nodes = nodes_with_nan("from the other rows")
    path = saved(tmp_path / "g.onnx", nodes, outputs=[y(columns=3)])
    contract = Served(path, missing_values=choice, profile="throughput").contract
    assert contract.inputs[0].takes_missing
    assert contract.batch_axis is None
    refusing = Served(path, missing_values="refuse", profile="throughput").contract
    assert refusing.batch_axis is None  # NaN can also come from within the graph


@pytest.mark.parametrize(("kind", "joins"), [("from the other rows", False), ("imputer", True)])
def test_a_run_folder_whose_values_may_be_missing_is_proven_with_gaps(
    kind: str, joins: bool, tmp_path: Path
) -> None:
    """Its export had no reason to: allowing them comes with packing."""
    source = saved(tmp_path / MODEL_FILE, nodes_with_nan(kind), outputs=[y(columns=3)])
    case = GoldenCase(*({name: np.ones((2, 3), np.float32)} for name in "xy"))
    contract = replace(contract_of(source), batch_axis="n")
    (tmp_path / CONTRACT_FILE).write_text(contract.to_json())
    write_golden(tmp_path / GOLDEN_FILE, [case])
    Recipe("gaps", "none.py:none").save(tmp_path)
    settings = PackageSettings(model_store=tmp_path, golden="real", missing_values="allow")
    with zipfile.ZipFile(package(tmp_path, settings)) as zipped:
        packed = Contract.from_json(zipped.read(CONTRACT_FILE))
    assert packed.inputs[0].takes_missing
    assert (packed.batch_axis == "n") is joins


def test_trees_without_a_way_for_missing_values_refuse_them(tmp_path: Path) -> None:
    """Every comparison with NaN is false: the value would go one way by accident."""
    assert (
        "got null"
        in Served(trees(tmp_path / "t.onnx", [0, 0, 0])).refusal({"x": [[1, None, 2]]})[1]
    )
