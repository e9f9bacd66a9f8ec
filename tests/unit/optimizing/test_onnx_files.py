"""`optimize FILE.onnx --calibration`: an ONNX file becomes a run folder, by the code of packing."""

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import marship
from marship.cli.app import app
from marship.contract import Array, Arrays, Contract, read_golden
from marship.errors import DataError, MarshipError, ModelError, PackageError, UsageError
from marship.fit.recipe import Recipe
from marship.optimizing.step import Optimized, OptimizeSettings, optimize
from marship.packaging.step import PackageSettings, package
from marship.proof import onnx_proof
from marship.proof.cases import read_rows, write_rows
from odd_models import listener

pytestmark = pytest.mark.slow

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
QUICK = OptimizeSettings(measure_s=0, proof_seconds=2)
WORDS = [f"word {number}" for number in range(20)]
Shape = Sequence[int | str]
real_describe = onnx_proof.describe


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs in this process, for speed."""
    monkeypatch.setattr(onnx_proof, "describe", onnx_proof._prove)


def normal(*shape: int, seed: int = 0) -> Array:
    """Real inputs, or weights."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Shape]],
    outputs: dict[str, tuple[int, Shape]],
    constants: dict[str, Any],
    **saving: Any,
) -> Path:
    """A file with these nodes; converters of tables name both sets of operators."""
    graph = helper.make_graph(
        [*nodes],
        "g",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, *value) for name, value in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made = helper.make_model(graph, opset_imports=sets, ir_version=9)
    onnx.save(made, str(path), **saving)
    return path


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node named as its first output."""
    names = outputs.split()
    return helper.make_node(kind, inputs.split(), names, name=names[0], **attributes)


def scales(path: Path, **saving: Any) -> Path:
    """Two layers, and outputs of which one is a millionth of the other."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Relu", "h", "r"),
        node("MatMul", "r large", "big"),
        node("MatMul", "r small", "tiny"),
    ]
    rows: dict[str, tuple[int, Shape]] = {"big": (FLOAT, ["n", 1]), "tiny": (FLOAT, ["n", 1])}
    weights = {"w": normal(8, 32), "large": 1e3 * normal(32, 1), "small": 1e-3 * normal(32, 1)}
    return model(path, nodes, {"x": (FLOAT, ["n", 8])}, rows, weights, **saving)


def near_ties(path: Path) -> Path:
    """Scores of three classes that differ by a thousandth of what they share."""
    shared = normal(16, 1) @ np.ones((1, 3), np.float32)
    weights = {"w": normal(8, 16, seed=1), "last": shared + 1e-3 * normal(16, 3, seed=2)}
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h last", "scores")]
    return model(path, nodes, {"x": (FLOAT, ["n", 8])}, {"scores": (FLOAT, ["n", 3])}, weights)


def texts(path: Path) -> Path:
    """Two words to a label in text, and scores."""
    nodes = [
        node(
            "LabelEncoder", "words", "i", domain="ai.onnx.ml", keys_strings=WORDS,
            values_int64s=list(range(20)), default_int64=0,
        ),
        node("Gather", "table i", "e"),
        node("Flatten", "e", "f"),
        node("MatMul", "f w", "scores"),
        node("ArgMax", "scores", "best", axis=1, keepdims=0),
        node("ArrayFeatureExtractor", "classes best", "row", domain="ai.onnx.ml"),
        node("Reshape", "row any", "label"),
    ]  # fmt: skip
    constants = {
        "table": normal(20, 16),
        "w": normal(32, 3),
        "any": np.array([-1]),
        "classes": np.array(["red", "grün", 'b"l,ue'], dtype=object),
    }
    outputs: dict[str, tuple[int, Shape]] = {"label": (STRING, ["n"]), "scores": (FLOAT, ["n", 3])}
    return model(path, nodes, {"words": (STRING, ["n", 2])}, outputs, constants)


def pictures(path: Path) -> Path:
    """A convolution for one picture at a time, as files with a fixed batch are."""
    nodes = [
        node("Conv", "image w", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r w2", "c2"),
        node("GlobalAveragePool", "c2", "g"),
        node("Flatten", "g", "y"),
    ]
    weights = {"w": normal(8, 3, 3, 3), "w2": normal(4, 8, 3, 3)}
    return model(path, nodes, {"image": (FLOAT, [1, 3, 8, 8])}, {"y": (FLOAT, [1, 4])}, weights)


def state(path: Path) -> Path:
    """A state beside the input, on another axis, and a number without axes."""
    nodes = [
        node("MatMul", "x w", "m"),
        node("Cast", "rate", "f", to=FLOAT),
        node("Mul", "m f", "scaled"),
        node("Add", "scaled h", "next"),
    ]
    inputs: dict[str, tuple[int, Shape]] = {
        "x": (FLOAT, [1, "t", 8]),
        "h": (FLOAT, [2, 1, 8]),
        "rate": (INT64, []),
    }
    return model(path, nodes, inputs, {"next": (FLOAT, [2, "t", 8])}, {"w": normal(8, 8)})


def zipped(path: Path) -> Path:
    """A classifier with names of classes, as converters of scikit-learn write it."""
    names = ["a", "b", "c"]
    linear = node(
        "LinearClassifier", "x", "label p", domain="ai.onnx.ml", intercepts=[0.0, 0.0, 0.0],
        coefficients=normal(9).tolist(), post_transform="SOFTMAX", classlabels_strings=names,
    )  # fmt: skip
    named = node("ZipMap", "p", "shares", domain="ai.onnx.ml", classlabels_strings=names)
    kind = helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, []))
    outputs = [
        helper.make_tensor_value_info("label", STRING, ["n"]),
        helper.make_value_info("shares", helper.make_sequence_type_proto(kind)),
    ]
    x = helper.make_tensor_value_info("x", FLOAT, ["n", 3])
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([linear, named], "g", [x], outputs)
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), str(path))
    return path


def saved(path: Path, **arrays: Any) -> Path:
    """An npz."""
    np.savez(path, **arrays)
    return path


def states(folder: Path, count: int = 48) -> Path:
    """A folder with requests, a quarter of them longer than the others."""
    folder.mkdir()
    for number in range(count):
        length = 4 if number % 4 == 0 else 1
        one = {"x": normal(1, length, 8, seed=number), "h": normal(2, 1, 8, seed=number)}
        saved(folder / f"{number:03}.npz", **one, rate=np.array(1))
    return folder


def said(path: Path, count: int = 40) -> Path:
    """Requests with words as JSON."""
    drawn = np.random.default_rng(5).choice(WORDS, (count, 1, 2)).tolist()
    path.write_text(json.dumps([{"words": words} for words in drawn]))
    return path


def entry(done: Optimized, name: str) -> dict[str, Any]:
    """A variant in the report."""
    return next(one for one in done.report["variants"] if one["name"] == name)


def packed(source: Path, store: Path, **settings: Any) -> dict[str, Any]:
    """The contract in the archive of a file or folder."""
    mar = package(source, PackageSettings(model_store=store, proof_seconds=2, **settings))
    with zipfile.ZipFile(mar) as archive:
        found: dict[str, Any] = json.loads(archive.read("contract.json"))
    return found


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path]]] = {
    "classes by name": (zipped, lambda at: saved(at / "d.npz", x=normal(40, 3))),
    "text": (texts, lambda at: said(at / "d.json")),
    "one picture": (pictures, lambda at: saved(at / "d.npz", image=normal(40, 3, 8, 8))),
    "a state": (state, lambda at: states(at / "d")),
    "needs an example": (
        lambda path: listener(path, 400),
        lambda at: saved(at / "d.npz", sound=normal(40, 500)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_packed_alike_with_and_without_optimize(tmp_path: Path, kind: str) -> None:
    """The contract is that of `package FILE --example DATA`; the archive's golden cases pass."""
    make, data = KINDS[kind]
    file, given = make(tmp_path / "given.onnx"), data(tmp_path)
    want = packed(file, tmp_path / "store", name="plain", example=given)
    done = optimize(file, QUICK, calibration=given, out=tmp_path / "run")
    built = [v for v in done.report["variants"] if v["built"]]
    assert done.report["compared"]["rows"] == (9 if kind == "a state" else 10)
    assert all(v["outputs"] and v["verdict"] for v in built)
    assert packed(done.run_dir, tmp_path / "store", variant="exported") == want
    mar = package(done.run_dir, PackageSettings(model_store=tmp_path / "chosen"))
    assert marship.check(mar).golden_cases >= 1


def test_the_command_says_what_was_compared_and_what_is_not_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table by output, one line of what was compared, one of what that does not prove."""
    monkeypatch.setattr(onnx_proof, "describe", real_describe)
    data = saved(tmp_path / "d.npz", x=normal(100, 8))
    words = ["optimize", str(scales(tmp_path / "given.onnx")), "--calibration", str(data)]
    words += ["--measure-s", "0", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "rows are independent" in result.stderr
    text = result.stdout
    assert "on 25 real inputs (calibration data, every fourth row)" in text
    assert "does not prove accuracy on labels" in text
    lines = [line.split() for line in text.splitlines()]
    assert {line[1] for line in lines if line[:1] == ["int8_static"]} >= {"big", "tiny"}
    assert (tmp_path / "run" / "optimize.png").read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(app, [*words, "--json"])
    fields = json.loads(again.stdout)
    assert fields["is_fresh"] is False
    assert fields["compared"]["most_error"] == 0.05
    outputs = next(v for v in fields["variants"] if v["name"] == "int8_static")["outputs"]
    assert outputs["tiny"]["error"] < 0.05  # of its own spread, beside one a million times larger
    assert outputs["tiny"]["rows"] == 25


def test_a_top_class_that_int8_flips_is_told(tmp_path: Path) -> None:
    """The scores are off by next to nothing, and yet other classes win: int8 is not chosen."""
    data = saved(tmp_path / "d.npz", x=normal(400, 8, seed=3))
    file, settings = near_ties(tmp_path / "ties.onnx"), QUICK
    done = optimize(file, settings, calibration=data, out=tmp_path / "run")
    found = entry(done, "int8_static")
    scores = found["outputs"]["scores"]
    assert scores["error"] < 0.05
    assert scores["same"] == "top class"
    assert scores["agreement"] < 0.99
    flips = round(100 * (1 - scores["agreement"]))
    assert found["verdict"] == "rejected"
    assert f"another top class in {flips} of 100 real rows, more than 1 %" in found["why"]
    assert done.report["chosen"] in ("exported", "float32")
    lax = optimize(
        file,
        OptimizeSettings(measure_s=0, least_agreement=0.0, variant="int8_static"),
        calibration=data,
        out=tmp_path / "run",
    )
    assert "although" not in lax.report["why"]


def labelled(path: Path, *, has_floats: bool) -> Path:
    """The class of `near_ties` alone, or beside a float that int8 does not touch."""
    shared = normal(16, 1) @ np.ones((1, 3), np.float32)
    weights = {"w": normal(8, 16, seed=1), "last": shared + 1e-2 * normal(16, 3, seed=2)}
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h last", "scores")]
    nodes.append(node("ArgMax", "scores", "label", axis=1, keepdims=0))
    outputs: dict[str, tuple[int, Shape]] = {"label": (INT64, ["n"])}
    inputs: dict[str, tuple[int, Shape]] = {"x": (FLOAT, ["n", 8])}
    if has_floats:
        nodes.append(node("Neg", "z", "minus"))
        inputs["z"], outputs["minus"] = (FLOAT, ["n"]), (FLOAT, ["n"])
    return model(path, nodes, inputs, outputs, weights)


@pytest.mark.parametrize("has_floats", [False, True])
def test_labels_are_held_to_the_least_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_floats: bool
) -> None:
    """Alone, and beside floats that are exact, which say nothing of them; golden cases pass."""
    monkeypatch.setattr("marship.optimizing.measure.objection", lambda *_: None)
    other = {"z": normal(400)} if has_floats else {}
    data = saved(tmp_path / "d.npz", x=normal(400, 8, seed=3), **other)
    file = labelled(tmp_path / "labels.onnx", has_floats=has_floats)
    done = optimize(file, QUICK, calibration=data, out=tmp_path / "run")
    found = entry(done, "int8_static")
    assert found["outputs"]["label"]["agreement"] < 0.99
    assert found["verdict"] == "rejected"
    assert "output label has other values in" in found["why"]
    lax = replace(QUICK, least_agreement=0.5)
    found = entry(optimize(file, lax, calibration=data, out=tmp_path / "run"), "int8_static")
    assert found["verdict"] != "rejected"
    other = {name: array[:31] for name, array in other.items()}
    few = saved(tmp_path / "few.npz", x=normal(31, 8), **other)
    done = optimize(file, QUICK, calibration=few, out=tmp_path / "run")
    is_rejected = entry(done, "int8_static")["verdict"] == "rejected"
    assert is_rejected != has_floats


def test_a_judge_decides_where_there_is_one(tmp_path: Path) -> None:
    """By its only metric, on targets of the calibration data or of held-out data."""
    judge = tmp_path / "judges.py"
    judge.write_text(
        "def off(outputs, targets):\n"
        "    return {'off': abs(outputs['tiny'][:, 0] - targets['t']).mean()}\n"
        "def two(outputs, targets):\n"
        "    return {'a': 1, 'b': len(targets['t'])}\n"
    )
    rows = {"x": normal(80, 8), "target/t": np.zeros(80)}
    data, file = saved(tmp_path / "d.npz", **rows), scales(tmp_path / "given.onnx")
    settings = OptimizeSettings(measure_s=0, lower_is_better=True, budget=1.0)
    folder = tmp_path / "run"
    done = optimize(file, settings, calibration=data, judge=f"{judge}:off", out=folder)
    assert done.report["rule"]["metric"] == "off"
    assert done.report["compared"] is None
    assert entry(done, "int8_static")["metrics"]["off"] > 0
    assert Recipe.load(folder).metric == "off"
    other = saved(tmp_path / "h.npz", x=normal(9, 8), **{"target/t": np.zeros(9)})
    with pytest.raises(UsageError, match="a, b, got no name"):
        optimize(file, settings, calibration=data, judge=f"{judge}:two", out=folder)
    named = OptimizeSettings(measure_s=0, metric="b")
    done = optimize(file, named, calibration=data, heldout=other, judge=f"{judge}:two", out=folder)
    assert entry(done, "int8_static")["metrics"] == {"a": 1, "b": 9}
    with pytest.raises(DataError, match="at least 32 rows to keep 8 back for the judge, got 9"):
        optimize(file, settings, calibration=other, judge=f"{judge}:off", out=folder)


JUDGES = {
    "NaN": (
        "return {'a': float('nan')}",
        "a finite a for the exported model's own outputs, got nan",
    ),
    "infinity": ("return {'a': float('inf')}", "a finite a .* got inf"),
    "it ends": ("sys.exit(3)", "must judge the held-out outputs, got SystemExit: 3"),
    "it ends at once": ("os._exit(0)", r"got SystemExit: os\._exit\(0\)"),
    "asynchronous": ("return None\nasync def judge(a, b): pass", "a coroutine: write def"),
}


@pytest.mark.parametrize("kind", JUDGES)
@pytest.mark.filterwarnings("error")
def test_a_judge_that_is_at_fault_is_one_line(tmp_path: Path, kind: str) -> None:
    """No variant is rejected in its place, and the process goes on."""
    body, words = JUDGES[kind]
    judge = touch(tmp_path / "j.py", f"import os, sys\ndef judge(a, b):\n    {body}\n")
    data = saved(tmp_path / "d.npz", x=normal(40, 8), **{"target/t": normal(40)})
    file = scales(tmp_path / "given.onnx")
    with pytest.raises(DataError, match=words):
        optimize(file, QUICK, calibration=data, judge=f"{judge}:judge", out=tmp_path / "run")
    assert not list(tmp_path.glob("run/*"))


def test_what_a_judge_prints_is_not_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--json` is JSON alone; its children end as they like."""
    text = (
        "import os\nprint('loaded')\ndef judge(a, b):\n    print('hello')\n"
        "    if (child := os.fork()) == 0:\n        os._exit(7)\n"
        "    return {'code': os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n"
    )
    judge = touch(tmp_path / "j.py", text)
    data = saved(tmp_path / "d.npz", x=normal(40, 8), **{"target/t": normal(40)})
    out = tmp_path / "run"
    file = scales(tmp_path / "given.onnx")
    done = optimize(file, QUICK, calibration=data, judge=f"{judge}:judge", out=out)
    assert entry(done, "exported")["metrics"] == {"code": 7}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert {"loaded", "hello"} <= set(captured.err.split())


def test_external_data_anywhere_is_taken(tmp_path: Path) -> None:
    """Below the file's folder, under a name of marship's own; the folder is flat."""
    (tmp_path / "given" / "sub").mkdir(parents=True)
    file = scales(
        tmp_path / "given" / "m.onnx",
        save_as_external_data=True,
        location="model.float32.onnx.data",
        size_threshold=0,
    )
    data = saved(tmp_path / "d.npz", x=normal(40, 8))
    done = optimize(file, QUICK, calibration=data, out=tmp_path / "run")
    assert entry(done, "int8_static")["built"]
    assert (done.run_dir / "model.onnx.data").is_file()
    contract = Contract.from_json((done.run_dir / "contract.json").read_bytes())
    assert contract.files == ("model.onnx", "model.onnx.data")
    scales(tmp_path / "given" / "m.onnx")
    optimize(file, QUICK, calibration=data, out=tmp_path / "run")
    assert not (done.run_dir / "model.onnx.data").exists()
    assert packed(done.run_dir, tmp_path / "store")["files"] == ["model.onnx"]


def test_few_inputs_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is compared below 32 rows, or requests where rows cannot be told apart."""
    file = scales(tmp_path / "given.onnx")
    few = saved(tmp_path / "few.npz", x=normal(31, 8))
    done = optimize(file, QUICK, calibration=few, out=tmp_path / "run")
    assert done.report["compared"] is None
    assert "31 rows. Outputs are compared from 32" in capfd.readouterr().err
    one = states(tmp_path / "few", 1)
    done = optimize(state(tmp_path / "s.onnx"), QUICK, calibration=one, out=tmp_path / "other")
    assert "has 1 request, as this model's rows cannot be told apart" in capfd.readouterr().err
    assert "fewer than 32" in entry(done, "int8_static")["why"]


@pytest.mark.parametrize("kind", ["rows", "texts", "requests"])
def test_copies_of_a_row_count_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    """A hundred of the same are one; forty of which half are copies are twenty."""
    if kind == "rows":
        file = scales(tmp_path / "m.onnx")
        data = saved(tmp_path / "d.npz", x=np.repeat(normal(1, 8), 100, axis=0))
    elif kind == "texts":
        file, data = texts(tmp_path / "m.onnx"), tmp_path / "d.json"
        data.write_text(json.dumps([{"words": [["word 1", "word 2"]]}] * 40))
    else:
        file, data = pictures(tmp_path / "m.onnx"), tmp_path / "d.npz"
        saved(data, image=np.concatenate([normal(20, 3, 8, 8)] * 2))
    done = optimize(file, QUICK, calibration=data, out=tmp_path / "run")
    assert done.report["compared"] is None
    left = {"rows": "99 rows of 100", "texts": "39 rows of 40", "requests": "20 requests of 40"}
    assert f"{left[kind]} a second time" in capfd.readouterr().err
    assert entry(done, "int8_static")["verdict"] in ("rejected", "not built")


def test_an_unchanged_file_is_not_optimized_twice(tmp_path: Path) -> None:
    """Neither proven nor built; other data is, and a trained run's folder is left alone."""
    data, file = saved(tmp_path / "d.npz", x=normal(40, 8)), scales(tmp_path / "given.onnx")
    folder = tmp_path / "run"
    assert optimize(file, QUICK, calibration=data, out=folder).fresh
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not optimize(file, QUICK, calibration=data, out=folder).fresh
    assert not optimize(folder, QUICK).fresh
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    saved(data, x=normal(44, 8))
    assert optimize(file, QUICK, calibration=data, out=folder).report["compared"]["rows"] == 11
    with pytest.raises(UsageError, match="made from an ONNX file"):
        marship.export(folder)
    Recipe("trained", build="m:build").save(folder)
    with pytest.raises(UsageError, match="got the run folder of a recipe"):
        optimize(file, QUICK, calibration=data, out=folder)


@pytest.mark.parametrize("is_outside", [False, True])
def test_another_file_than_the_measured_one_is_not_packed(
    tmp_path: Path, *, is_outside: bool
) -> None:
    """Of the same inputs and outputs; `optimize` builds it again. Nor is another model.onnx."""
    variant = "float32" if is_outside else "int8_static"
    outside = {"save_as_external_data": True, "location": "w", "size_threshold": 0}
    file = scales(tmp_path / "given.onnx", **(outside if is_outside else {}))
    data, folder = saved(tmp_path / "d.npz", x=normal(40, 8)), tmp_path / "run"
    done = optimize(file, QUICK, calibration=data, out=folder)
    packed(folder, tmp_path / "store", variant=variant)
    name = f"model.{variant}.onnx{'.data' if is_outside else ''}"
    kept = (folder / name).read_bytes()
    (folder / name).write_bytes(bytes([kept[0] ^ 1]) + kept[1:])
    again = rf"{variant}\.onnx must be the file that optimize\.json .* optimize {folder}$"
    with pytest.raises(PackageError, match=again):
        packed(folder, tmp_path / "store", variant=variant)
    done = optimize(folder, QUICK)
    assert done.fresh
    packed(folder, tmp_path / "store", variant=variant)
    (folder / "model.onnx").write_bytes((folder / "model.float32.onnx").read_bytes())
    with pytest.raises(PackageError, match=r"model\.onnx must be the file that contract\.json"):
        packed(folder, tmp_path / "store", variant=variant)


def test_missing_values_are_as_packing_finds_them(tmp_path: Path) -> None:
    """Trees that know NaN take it after optimize, too, and `--missing-values` still decides."""
    ways = {"nodes_missing_value_tracks_true": [1, 0, 0], "target_weights": [10.0, 20.0]}
    tree = node(
        "TreeEnsembleRegressor", "x", "y", domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[1, 0, 0],
        nodes_modes=["BRANCH_LT", "LEAF", "LEAF"], nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0],
        target_nodeids=[1, 2], target_ids=[0, 0], **ways,
    )  # fmt: skip
    file = tmp_path / "trees.onnx"
    x, y = (helper.make_tensor_value_info(*v) for v in (("x", 1, ["n", 3]), ("y", 1, ["n", 1])))
    sets = [helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([tree], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), str(file))
    rows = normal(60, 3)
    rows[::7, 1] = np.nan
    data = saved(tmp_path / "d.npz", x=rows)
    done = optimize(file, QUICK, calibration=data, out=tmp_path / "run")
    assert [v["name"] for v in done.report["variants"] if v["built"]] == ["exported", "float32"]
    for choice, takes in (("auto", True), ("allow", True), ("refuse", False)):
        found = packed(done.run_dir, tmp_path / "store", missing_values=choice)
        assert found["inputs"][0]["takes_missing"] is takes
        mar = tmp_path / "store" / "trees.mar"
        assert marship.check(mar).golden_cases == (4 if takes else 3)


def test_rows_that_come_in_pairs_are_held_back_in_pairs(tmp_path: Path) -> None:
    """A file that takes an even number of rows gets no odd one, in no part."""
    nodes = [
        node("Reshape", "x pairs", "r"),
        node("Tanh", "r", "t"),
        node("Reshape", "t rows", "q"),
        node("MatMul", "q w", "y"),
    ]
    shapes = {"pairs": np.array([-1, 2, 8]), "rows": np.array([-1, 8])}
    inputs: dict[str, tuple[int, Shape]] = {"x": (FLOAT, ["n", 8])}
    outputs: dict[str, tuple[int, Shape]] = {"y": (FLOAT, ["n", 1])}
    file = model(tmp_path / "pairs.onnx", nodes, inputs, outputs, {**shapes, "w": normal(8, 1)})
    data = saved(tmp_path / "d.npz", x=normal(82, 8))
    done = optimize(file, QUICK, calibration=data, out=tmp_path / "run")
    contract = Contract.from_json((done.run_dir / "contract.json").read_bytes())
    assert contract.steps == {"n": 2}
    assert done.report["compared"]["rows"] == 20
    assert all(list(v["latency_ms"]) == ["2", "16"] for v in done.report["variants"] if v["built"])


def test_golden_cases_are_of_the_wanted_kind(tmp_path: Path) -> None:
    """Real rows only where they are asked for, in both steps."""
    data = saved(tmp_path / "d.npz", x=normal(40, 8))
    file, settings = scales(tmp_path / "given.onnx"), OptimizeSettings(golden="real", measure_s=0)
    done = optimize(file, settings, calibration=data, out=tmp_path / "run")
    (first, *_) = read_golden(done.run_dir / "golden.npz")
    assert first.inputs["x"].tolist() in normal(40, 8)[:, None].tolist()
    with pytest.raises(PackageError, match=r"Optimize the ONNX file again with --golden synth"):
        packed(done.run_dir, tmp_path / "store")
    packed(done.run_dir, tmp_path / "store", golden="real")


def touch(path: Path, text: str = "") -> Path:
    """A file."""
    path.write_text(text)
    return path


REFUSED: dict[str, tuple[Callable[[Path], dict[str, Any]], type[MarshipError], str]] = {
    "no data": (lambda _: {}, UsageError, r"--calibration data\.npz"),
    "no such data": (lambda at: {"calibration": at / "no.npz"}, UsageError, "no such file"),
    "another type": (
        lambda at: {"calibration": saved(at / "d.npz", x=np.zeros((40, 8)))},
        DataError,
        "x must be float32.*float64",
    ),
    "another name": (
        lambda at: {"calibration": saved(at / "d.npz", z=normal(40, 8))},
        DataError,
        "arrays named x, got z",
    ),
    "no npz": (lambda at: {"calibration": touch(at / "d.npz", "x")}, DataError, "must be an npz"),
    "an empty folder": (lambda at: {"calibration": at}, UsageError, "must hold .* files, got none"),
    "no such judge": (
        lambda at: {"calibration": saved(at / "d.npz", x=normal(40, 8)), "judge": "no.py:judge"},
        UsageError,
        r"no\.py must be a Python file",
    ),
    "no targets": (
        lambda at: {
            "calibration": saved(at / "d.npz", x=normal(40, 8)),
            "judge": f"{touch(at / 'j.py', 'def judge(a, b): return {}')}:judge",
        },
        UsageError,
        "must hold the judge's targets",
    ),
    "a judge that fails": (
        lambda at: {
            "calibration": saved(at / "d.npz", x=normal(40, 8), **{"target/t": normal(40)}),
            "judge": f"{touch(at / 'f.py', 'def judge(a, b): return b[1]')}:judge",
        },
        DataError,
        "must judge the held-out outputs, got KeyError",
    ),
    "targets of other rows": (
        lambda at: {"calibration": saved(at / "d.npz", x=normal(40, 8), **{"target/t": normal(3)})},
        DataError,
        "target/t .* a row for each of 40 rows",
    ),
    "other held-out data": (
        lambda at: {
            "calibration": saved(at / "d.npz", x=normal(40, 8)),
            "heldout": saved(at / "h.npz", x=normal(40, 9)),
        },
        DataError,
        r"x of .*h\.npz must be float32\[n, 8\], got shape \[40, 9\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_data_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """That names the file and what to do; no folder is half written."""
    given, kind, words = REFUSED[name]
    (tmp_path / "data").mkdir()
    file = scales(tmp_path / "given.onnx")
    with pytest.raises(kind, match=words) as caught:
        optimize(file, QUICK, **given(tmp_path / "data"), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("run/*"))


def disordered(path: Path) -> Path:
    """Nodes in another order than they run, which ONNX's checker refuses."""
    made = onnx.load(scales(path))
    nodes = [*made.graph.node][::-1]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    onnx.save(made, str(path))
    return path


def test_a_file_that_packing_repairs_is_optimized(tmp_path: Path) -> None:
    """By the same repairs, and packed with the same contract."""
    file = disordered(tmp_path / "given.onnx")
    data = saved(tmp_path / "d.npz", x=normal(40, 8))
    done = optimize(file, QUICK, calibration=data, out=tmp_path / "run")
    want = packed(file, tmp_path / "store", name="plain", example=data)
    assert packed(done.run_dir, tmp_path / "store", variant="exported") == want


def masked(path: Path) -> Path:
    """A softmax of scores and a mask, whose values are 0 and negative infinity."""
    nodes = [
        node("MatMul", "x w", "scores"),
        node("Add", "scores mask", "kept"),
        node("Softmax", "kept", "shares", axis=1),
        node("MatMul", "shares last", "y"),
    ]
    inputs: dict[str, tuple[int, Shape]] = {"x": (FLOAT, ["n", 8]), "mask": (FLOAT, ["n", 4])}
    weights = {"w": normal(8, 4), "last": normal(4, 3, seed=1)}
    return model(path, nodes, inputs, {"y": (FLOAT, ["n", 3])}, weights)


def test_values_that_are_not_finite_are_taken_where_the_user_says_so(tmp_path: Path) -> None:
    """The flag is that of packing, and what refuses a value names it, in held-out data, too."""
    file, mask = masked(tmp_path / "masked.onnx"), np.zeros((64, 4), np.float32)
    mask[:, 2:][::3] = -np.inf
    x, nothing = normal(64, 8), np.zeros_like(mask)
    data = saved(tmp_path / "d.npz", x=x, mask=mask)
    plain = saved(tmp_path / "p.npz", x=x, mask=nothing)
    gaps = saved(tmp_path / "h.npz", x=np.full_like(x, np.nan), mask=nothing)
    with pytest.raises(DataError, match=r"mask .* got infinity.*--missing-values any"):
        optimize(file, QUICK, calibration=data, out=tmp_path / "run")
    with pytest.raises(DataError, match=r"x of .*h\.npz .* NaN.*--missing-values allow"):
        optimize(file, QUICK, calibration=plain, heldout=gaps, out=tmp_path / "run")
    with pytest.raises(UsageError, match="missing-values must be one of"):
        optimize(file, replace(QUICK, missing_values="some"), calibration=data)
    settings = replace(QUICK, missing_values="any")
    done = optimize(file, settings, calibration=data, out=tmp_path / "run")
    assert done.report["compared"]["rows"] == 16
    contract = packed(done.run_dir, tmp_path / "store", missing_values="any")
    assert [spec["takes_missing"] for spec in contract["inputs"]] == [True, True]


def test_operators_of_a_library_are_refused_with_what_packs_them(tmp_path: Path) -> None:
    """As `optimize` loads no libraries, its own flags are all that it advises."""
    file = tmp_path / "given.onnx"
    shapes: dict[str, tuple[int, Shape]] = {"x": (FLOAT, ["n", 8])}
    rows: dict[str, tuple[int, Shape]] = {"y": (FLOAT, ["n", 8])}
    model(file, [node("Own", "x", "y", domain="my.domain")], shapes, rows, {})
    made = onnx.load(file)
    made.opset_import.append(helper.make_opsetid("my.domain", 1))
    onnx.save(made, str(file))
    data = saved(tmp_path / "d.npz", x=normal(40, 8))
    advice = (
        r"operators of my\.domain to package, as optimize takes none: marship package "
        r"given\.onnx --custom-ops FILE\.so"
    )
    with pytest.raises(ModelError, match=advice):
        optimize(file, QUICK, calibration=data, out=tmp_path / "run")
    assert not list(tmp_path.glob("run/*"))


def test_what_is_no_onnx_file_is_one_line(tmp_path: Path) -> None:
    """Another file, nothing at all; and a run folder gets no data of its own."""
    data = saved(tmp_path / "d.npz", x=normal(40, 8))
    with pytest.raises(ModelError, match=r"bad\.onnx must be a valid ONNX model"):
        optimize(touch(tmp_path / "bad.onnx", "hello"), QUICK, calibration=data)
    with pytest.raises(UsageError, match="a run folder or an ONNX file, got nothing there"):
        optimize(tmp_path / "no.onnx", QUICK, calibration=data)
    with pytest.raises(UsageError, match="calibration must be of an ONNX file, got one for"):
        optimize(tmp_path, QUICK, calibration=data)


def test_rows_of_text_are_written_without_a_change(tmp_path: Path) -> None:
    """A NUL at the end, an emoji, nothing: NumPy's own text would lose the first."""
    rows: Arrays = {
        "words": np.array([["a\0", "\U0001f600"], ["", "ü\n"]], dtype=object),
        "x": normal(2, 3),
    }
    write_rows(tmp_path / "rows.npz", rows)
    found = read_rows(tmp_path / "rows.npz")
    assert found["words"].tolist() == rows["words"].tolist()
    np.testing.assert_array_equal(found["x"], rows["x"])
