"""`package --example`: models that do not run on drawn inputs are packed with their own."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from marship.cli.app import app
from marship.contract import Arrays, Contract, read_golden
from marship.errors import DataError, MarshipError, ModelError, UsageError
from marship.packaging.step import PackageSettings, package
from marship.proof import cases, examples, graph, parity
from marship.serving.formats import codec
from marship.serving.handler import OnnxHandler
from marship.trust import archive
from models import write_model
from odd_models import edges, listener, skip
from workers import opened

pytestmark = pytest.mark.slow

KERNEL = 400


def packed(source: Path, folder: Path, **settings: object) -> tuple[Contract, Path]:
    """The contract of a packed file, and its archive."""
    mar = package(source, PackageSettings(model_store=folder / "store", **settings))  # type: ignore[arg-type]
    contract = archive.read(mar).contract
    assert contract is not None
    return contract, mar


def golden(mar: Path) -> list[Arrays]:
    """The inputs of an archive's golden cases."""
    with zipfile.ZipFile(mar) as zipped, zipped.open("golden.npz") as file:
        return [case.inputs for case in read_golden(file)]  # type: ignore[arg-type]


def sounds(rows: int, length: int) -> np.ndarray:
    """Noise, float32."""
    return np.random.default_rng(rows).normal(size=(rows, length)).astype(np.float32)


def test_an_axis_of_no_values_in_the_file_is_none_in_the_example(tmp_path: Path) -> None:
    """Where the file says that an input has no values, an example without any is one."""
    sizes = helper.make_tensor_value_info("sizes", TensorProto.INT64, [3])
    x, *parts = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [0]) for name in ("x", "a", "b", "c")
    )
    split = helper.make_node("Split", ["x", "sizes"], ["a", "b", "c"])
    made = helper.make_graph([split], "g", [x, sizes], parts)
    source, example = tmp_path / "split.onnx", tmp_path / "example.npz"
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        str(source),
    )
    np.savez(example, x=np.zeros(0, np.float32), sizes=np.zeros(3, np.int64))
    contract, _ = packed(source, tmp_path, example=example)
    assert contract.inputs[0].shape == (0,)


def test_multiples_are_stated_and_obeyed(tmp_path: Path) -> None:
    """Height and width of multiples of 16: any other size is a 400 that names the rule."""
    contract, mar = packed(skip(tmp_path / "skip.onnx", 16), tmp_path)
    assert contract.steps == {"h": 16, "w": 16}
    assert contract.batch_axis == "n"
    worker = opened(mar, tmp_path / "extracted", OnnxHandler)
    good, bad = (np.ones((2, 1, h, 48), np.float32) for h in (32, 40))
    fine, refused = worker({"body": codec.write_npy(good)}, {"body": codec.write_npy(bad)})
    np.testing.assert_array_equal(codec.read_npy(fine.body), 2 * good)
    assert (refused.status, refused.json()["code"]) == (400, "invalid_input")
    assert (
        "axis h of x must be at least 16 and a multiple of 16, got 40" in refused.json()["message"]
    )


def test_what_does_not_run_is_told_in_one_line(tmp_path: Path) -> None:
    """The sizes that were tried, ONNX Runtime's reason without its codes, and the flag."""
    with pytest.raises(ModelError) as caught:
        packed(listener(tmp_path / "listener.onnx", KERNEL), tmp_path)
    message = str(caught.value)
    for words in ("sizes from 1 to 64 of length", "--example inputs.npz", "Conv"):
        assert words in message
    for words in ("\n", "[ONNXRuntimeError]", ".cc:", ".h:"):
        assert words not in message


Write = Callable[[Path], Path]


def write_npz(folder: Path) -> Path:
    """An npz of two rows."""
    np.savez(folder / "example.npz", sound=sounds(2, 1000))
    return folder / "example.npz"


def write_json(folder: Path) -> Path:
    """A list of two requests of different lengths."""
    requests = [{"sound": sounds(1, 1000).tolist()}, {"sound": sounds(2, 900).tolist()}]
    (folder / "example.json").write_text(json.dumps(requests))
    return folder / "example.json"


def write_kserve(folder: Path) -> Path:
    """One request of KServe v2."""
    tensor = {"name": "sound", "datatype": "FP32", "shape": [1, 1000]}
    tensor["data"] = sounds(1, 1000).ravel().tolist()
    (folder / "kserve.json").write_text(json.dumps({"inputs": [tensor]}))
    return folder / "kserve.json"


def write_folder(folder: Path) -> Path:
    """A folder of an npz, an npy and a JSON file, and others that are passed over."""
    place = folder / "requests"
    place.mkdir()
    write_npz(place)
    np.save(place / "one.npy", sounds(3, 1200))
    (place / "two.json").write_text(json.dumps(sounds(1, 800).tolist()))
    (place / "README.md").write_text("of whom?")
    (place / ".hidden.npz").write_bytes(b"x")
    return place


@pytest.mark.parametrize("write", [write_npz, write_json, write_kserve, write_folder])
def test_an_example_gives_the_sizes(tmp_path: Path, write: Write) -> None:
    """Of any form: axes are proven at sizes that run, and rows are shown to be independent."""
    source = listener(tmp_path / "listener.onnx", KERNEL)
    contract, mar = packed(source, tmp_path, example=write(tmp_path))
    assert contract.bounds["length"] == (KERNEL, None)
    assert contract.steps == {}
    assert contract.batch_axis == "n"
    assert {len(case["sound"]) for case in golden(mar)} == {1, 2, 7}
    own = {row.tobytes() for row in sounds(2, 1000)}
    assert not own & {row.tobytes() for case in golden(mar) for row in case["sound"]}


def test_the_command_takes_an_example_and_inspect_shows_the_sizes(tmp_path: Path) -> None:
    """As flags and tables; without the example one line says what is missing."""
    source = listener(tmp_path / "listener.onnx", KERNEL)
    run, words = CliRunner().invoke, ["package", str(source), "--model-store", str(tmp_path)]
    failed = run(app, words)
    assert failed.exit_code == 1
    packs = run(app, [*words, "--example", str(write_npz(tmp_path))])
    assert packs.exit_code == 0, packs.output
    shown = run(app, ["inspect", str(tmp_path / "listener.mar")]).output
    assert f"length at least {KERNEL}" in shown
    assert "example.npz" in shown


def test_real_golden_cases_are_rows_of_the_example(tmp_path: Path) -> None:
    """Only if they are asked for."""
    source = listener(tmp_path / "listener.onnx", KERNEL)
    _, mar = packed(source, tmp_path, example=write_npz(tmp_path), golden="real")
    own = {row[:KERNEL].tobytes() for row in sounds(2, 1000)}
    assert {row[:KERNEL].tobytes() for case in golden(mar) for row in case["sound"]} <= own
    assert archive.read(mar).evidence["golden"].startswith("real")


def test_indices_into_another_input(tmp_path: Path) -> None:
    """A graph's edges: served without joining, and an edge to no node is the client's error."""
    np.savez(
        tmp_path / "graph.npz",
        x=np.random.default_rng(0).random((7, 4), np.float32),
        edge_index=np.random.default_rng(0).integers(0, 7, (2, 12)),
    )
    source = edges(tmp_path / "edges.onnx")
    contract, mar = packed(source, tmp_path, example=tmp_path / "graph.npz", profile="throughput")
    assert contract.batch_axis is None
    assert set(contract.bounds.values()) == {(0, None)}  # of the edges alone
    worker = opened(mar, tmp_path / "extracted", OnnxHandler)
    small = {"x": [[1, 2, 3, 4]], "edge_index": [[0], [0]]}
    large = {"x": np.eye(20, 4).tolist(), "edge_index": [[0, 1], [1, 19]]}
    wrong = {"x": [[1, 2, 3, 4]] * 3, "edge_index": [[0], [3]]}
    answers = worker(
        *({"body": json.dumps(request).encode()} for request in (small, wrong, large)),
        content_type="application/json",
    )
    assert [answer.status for answer in answers] == [200, 400, 200]
    assert answers[0].json() == [[2, 4, 6, 8]] or answers[0].json() == {"y": [[2, 4, 6, 8]]}
    want = np.eye(20, 4)
    want[1] += np.eye(20, 4)[0]
    want[19] += np.eye(20, 4)[1]
    np.testing.assert_array_equal(answers[2].json()["y"], want)


BAD = {
    "no such file": ("absent.npz", None, UsageError, "no such file"),
    "empty": ("a.npz", b"", DataError, r"a\.npz"),
    "no npz": ("a.npz", b"hello", DataError, r"a\.npz"),
    "no npy": ("a.npy", b"hello", DataError, r"a\.npy must hold inputs.*npy"),
    "no JSON": ("a.json", b'{"sound": [', DataError, r"a\.json must hold inputs.*JSON"),
    "empty JSON": ("a.json", b"", DataError, r"a\.json must hold inputs.*none"),
    "another ending": ("a.csv", b"1,2", UsageError, r"ends in \.json, \.npy, \.npz, got \.csv"),
    "another name": ("a.json", b'{"noise": [[1, 2]]}', DataError, "the inputs must be sound"),
    "text": ("a.json", b'{"sound": [["a"]]}', DataError, "sound must hold values of type float32"),
    "one row": ("a.json", b'{"sound": [1, 2]}', DataError, r"sound of .* got shape \[2\]"),
    "no values": ("a.json", b'{"sound": [[]]}', DataError, "must hold values, got none"),
    "too short": ("a.json", b'{"sound": [[1, 2]]}', DataError, "inputs that the model takes.*Conv"),
    "the second": (
        "a.json",
        json.dumps([{"sound": [[0] * 500]}, {"sound": [[0]]}]).encode(),
        DataError,
        r"a\.json, request 2 must hold",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_example_is_one_line(tmp_path: Path, name: str) -> None:
    """That names the file and what is wrong with it."""
    file, content, kind, words = BAD[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    source = listener(tmp_path / "listener.onnx", KERNEL)
    with pytest.raises(kind, match=words) as caught:
        packed(source, tmp_path, example=tmp_path / file)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("store/*.mar"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"sound": np.zeros((1, 500))},
            r"sound must be float32\[n, length\], got float64\. Convert it with array\.astype",
        ),
        ({"sound": np.full((1, 500), np.nan, np.float32)}, "got NaN.* --missing-values allow"),
        ({"sound": np.full((1, 500), np.inf, np.float32)}, "must hold finite values, got infinity"),
        ({"noise": np.zeros((1, 500), np.float32)}, "arrays named sound, got noise"),
        ({"sound": np.zeros((1, 500), np.float32), "b": np.zeros(1)}, "arrays named sound, got"),
        ({"sound": np.zeros((1, 1, 500), np.float32)}, r"got shape \[1, 1, 500\]"),
        ({"sound": np.zeros((0, 500), np.float32)}, "must hold values, got none"),
        ({"sound": np.array([None])}, r"plain arrays, got Python objects.*array\.astype\(str\)"),
        ({}, "got none"),
    ],
)
def test_a_bad_npz_is_one_line(tmp_path: Path, arrays: Arrays, words: str) -> None:
    """Another type, name or rank; no rows, no numbers."""
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    source = listener(tmp_path / "listener.onnx", KERNEL)
    with pytest.raises(DataError, match=words) as caught:
        packed(source, tmp_path, example=tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\3\4", b"\x80\4N."])
def test_what_is_no_npz_is_said_without_advice_to_unpickle_it(data: bytes, tmp_path: Path) -> None:
    """NumPy advises to load a pickle, which runs what a file holds."""
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"must be an npz of plain arrays, got .+numpy\.savez"
    ) as told:
        cases.read_rows(path)
    assert "pickle" not in str(told.value)
    assert ".." not in str(told.value)


def test_an_npz_may_hold_several_requests_of_a_fixed_size(tmp_path: Path) -> None:
    """Ten pictures for a file that takes two at a time are five requests; seven are none."""
    source = product(tmp_path / "two.onnx")
    contract = graph.contract_of(source)
    pictures = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.savez(tmp_path / "a.npz", x=pictures, rate=np.float32(2))
    found = examples.read(tmp_path / "a.npz", contract, parity.runner(source))
    assert [request["x"].tolist() for request in found] == pictures.reshape(5, 2, 3).tolist()
    assert {request["rate"].item() for request in found} == {2.0}
    np.savez(tmp_path / "b.npz", x=pictures[:7], rate=np.float32(2))
    with pytest.raises(DataError, match=r"x of .* must be float32\[2, 3\], got shape \[7, 3\]"):
        examples.read(tmp_path / "b.npz", contract, parity.runner(source))


def product(path: Path) -> Path:
    """Two rows of three numbers, times a number without axes."""
    shape = TensorProto.FLOAT, [2, 3]
    body = helper.make_graph(
        [helper.make_node("Mul", ["x", "rate"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", *shape),
            helper.make_tensor_value_info("rate", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", *shape)],
    )
    return write_model(path, body)


def test_a_huge_example_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, and kilobytes that stand for more once they are unpacked."""
    source = listener(tmp_path / "listener.onnx", KERNEL)
    with (tmp_path / "a.npy").open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(DataError, match="at most 1,073,741,824 bytes, got 2,147,483,648"):
        packed(source, tmp_path, example=tmp_path / "a.npy")
    monkeypatch.setattr(examples, "MOST_BYTES", 10_000)
    np.savez_compressed(tmp_path / "a.npz", sound=np.zeros((10, 1000), np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 1000
    with pytest.raises(DataError, match="at most 10,000 bytes, got 40,128"):
        examples.read(tmp_path / "a.npz", graph.contract_of(source), lambda inputs: inputs)


def test_a_folder_without_requests_is_refused(tmp_path: Path) -> None:
    """So is an example of a run folder, which has its own."""
    (tmp_path / "empty").mkdir()
    source = listener(tmp_path / "listener.onnx", KERNEL)
    with pytest.raises(UsageError, match=r"must hold \.json, \.npy, \.npz files, got none"):
        packed(source, tmp_path, example=tmp_path / "empty")
    with pytest.raises(MarshipError, match="A run folder has its own"):
        packed(tmp_path / "empty", tmp_path, example=write_npz(tmp_path))
