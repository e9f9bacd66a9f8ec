"""Golden cases that travel in archives: nobody's data as shipped, and which kind is told."""

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from typer.testing import CliRunner

from marship.cli.app import app
from marship.contract import Arrays, Contract, TensorSpec, read_golden
from marship.errors import ModelError, PackageError, UsageError
from marship.packaging.step import PackageSettings, package
from marship.proof import golden
from marship.proof.golden import draw_golden
from marship.proof.trials import with_largest_sizes, with_least_sizes
from marship.trust import archive
from onnx_zoo import Builder

pytestmark = pytest.mark.slow

HISTORY = (
    TensorSpec("items", "int64", ("batch", "length"), 0, (0, 999)),
    TensorSpec("ratings", "float32", ("batch", "length"), 0.0),
    TensorSpec("age", "float32", ("batch",)),
    TensorSpec("note", "str", ("batch",)),
)
TABLE = TensorSpec("table", "float32", ("batch", 2))
PIXELS = TensorSpec("pixels", "uint8", ("batch", 16, 24, 3))


def contract(*inputs: TensorSpec) -> Contract:
    """A contract of these inputs; the length is 1 to 12."""
    total = TensorSpec("total", "float32", ("batch",))
    return Contract(inputs, (total,), ("m.onnx",), "", 21, "batch", {"length": (1, 12)})


def people(seed: int, rows: int) -> Arrays:
    """Histories of people, padded on the right with 0."""
    generator = np.random.default_rng(seed)
    items = generator.integers(1, 400, (rows, 12))
    ratings = generator.integers(1, 6, (rows, 12)).astype(np.float32)
    for row in range(rows):
        length = int(generator.integers(4, 13))
        items[row, length:], ratings[row, length:] = 0, 0.0
    age = generator.uniform(20, 80, rows).astype(np.float32)
    note = np.array([f"person {seed} {row}" for row in range(rows)], dtype=object)
    return {"items": items, "ratings": ratings, "age": age, "note": note}


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_no_history_number_or_text_of_a_person_is_in_synthetic_cases(seed: int, rows: int) -> None:
    """Not even three items in a row are anybody's; of numbers only ranges and ratings are kept."""
    examples = people(seed, rows)
    triples = {
        tuple(row[place : place + 3])
        for row in examples["items"]
        for place in range(10)
        if row[place : place + 3].all()
    }
    for case in draw_golden(contract(*HISTORY), examples):
        drawn = case.inputs
        found = {tuple(r[p : p + 3]) for r in drawn["items"] for p in range(len(r) - 2)}
        assert not triples & found
        assert not set(examples["age"]) & set(drawn["age"])
        assert not set(examples["note"]) & set(drawn["note"])


def test_synthetic_cases_cover_the_table_the_range_and_lengths() -> None:
    """Both ends of the table; ratings that there are; rows of different length, padded alike."""
    cases = list(draw_golden(contract(*HISTORY), people(0, 40)))
    assert [len(case.inputs["items"]) for case in cases] == [1, 2, 7]
    assert len({case.inputs["items"].shape[1] for case in cases}) == 3
    drawn = np.concatenate([case.inputs["items"].ravel() for case in cases])
    assert drawn.max() == 999
    for case in cases:
        items, ratings = case.inputs["items"], case.inputs["ratings"]
        assert items[0].all()
        assert set(np.unique(ratings)) <= {0, 1, 2, 3, 4, 5}
        np.testing.assert_array_equal(items == 0, ratings == 0)
    lengths = {(row != 0).sum() for case in cases[-2:] for row in case.inputs["items"]}
    assert len(lengths) > 2


def test_columns_of_a_table_keep_their_own_range() -> None:
    """An age is no income."""
    generator = np.random.default_rng(0)
    rows = np.stack([generator.uniform(20, 80, 64), generator.uniform(1e4, 1e6, 64)], axis=1)
    for case in draw_golden(contract(TABLE), {"table": rows.astype(np.float32)}):
        drawn = case.inputs["table"]
        assert ((drawn[:, 0] >= 20) & (drawn[:, 0] <= 80)).all()
        assert (drawn[:, 1] >= 1e4).all()


def test_one_row_of_examples_has_no_range_of_its_own() -> None:
    """Neither its values nor its smallest and largest are drawn."""
    row = np.array([[3.25, 7.5]], np.float32)
    for case in draw_golden(contract(TABLE), {"table": row}):
        assert not set(row.ravel()) & set(case.inputs["table"].ravel())


def test_pictures_are_drawn_in_patches_over_the_range() -> None:
    """White noise is like no picture, and quantized variants are measured on these, too."""
    seen = np.random.default_rng(0).integers(0, 256, (8, 16, 24, 3), dtype=np.uint8)
    *_, case = draw_golden(contract(PIXELS), {"pixels": seen})
    drawn = case.inputs["pixels"]
    assert drawn.dtype == np.uint8
    assert drawn.max() - drawn.min() > 150
    steps = np.abs(np.diff(drawn.astype(int), axis=2))
    assert np.median(steps) < 30


def test_real_cases_are_rows_of_the_examples() -> None:
    """Where they are requested."""
    examples = people(0, 5)
    (first, *_) = draw_golden(contract(*HISTORY), examples, golden.REAL)
    length = first.inputs["items"].shape[1]
    assert tuple(first.inputs["items"][0]) in {tuple(row[:length]) for row in examples["items"]}


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    """An unknown kind; real rows without any; another kind than was exported."""
    with pytest.raises(UsageError, match="golden must be one of synthetic, real"):
        list(draw_golden(contract(TABLE), None, "fake"))
    with pytest.raises(UsageError, match="synthetic without example rows"):
        list(draw_golden(contract(TABLE), None, golden.REAL))
    with pytest.raises(PackageError, match="must be synthetic, got real"):
        golden.check_found(golden.REAL, golden.SYNTHETIC, tmp_path)


def test_inspect_tells_which_kind_an_archive_has(
    linear_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And why requests run alone, or that they need not."""
    mar = package(linear_onnx, PackageSettings(model_store=tmp_path, name="lin"))
    assert "rows are independent: shown up to a batch of 1025" in capsys.readouterr().err
    found = archive.read(mar).evidence
    assert found["golden"] == "synthetic, computed by this ONNX file"
    assert found["rows_alone_and_together"]["agrees"]
    with pytest.raises(SystemExit):
        app(["inspect", str(mar)])
    shown = capsys.readouterr().out
    assert "golden cases" in shown
    assert "synthetic" in shown


def test_ids_of_a_packed_file_cover_its_table(tmp_path: Path) -> None:
    """Its golden cases are no zeros and ones."""
    values = np.ones((50, 2), np.float32)
    body = helper.make_graph(
        [helper.make_node("Gather", ["e", "ids"], ["y"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "L"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "L", 2])],
        [onnx.numpy_helper.from_array(values, "e")],
    )
    path = tmp_path / "emb.onnx"
    onnx.save(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    mar = package(path, PackageSettings(model_store=tmp_path))
    with zipfile.ZipFile(mar) as zipped:
        stated = json.loads(zipped.read("contract.json"))["inputs"][0]["value_range"]
        zipped.extract("golden.npz", tmp_path)
    drawn = [case.inputs["ids"] for case in read_golden(tmp_path / "golden.npz")]
    assert stated == [0, 49]
    assert max(array.max() for array in drawn) == 49


def convolution(path: Path, kernel: int, *, rank: int = 1) -> Path:
    """A mean over what a convolution without padding finds, of any length that it takes."""
    weights = np.ones((2, 1, kernel, *[1] * (rank - 1)), np.float32)
    axes = ["length", "width"][:rank]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["sound", "weights"], ["found"]),
            helper.make_node("GlobalAveragePool", ["found"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("sound", TensorProto.FLOAT, ["n", 1, *axes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("kernel", "rank"), [(1, 1), (3, 1), (40, 1), (5, 2)])
def test_lengths_that_the_model_refuses_are_outside_its_bounds(
    kernel: int, rank: int, tmp_path: Path
) -> None:
    """A convolution takes no row shorter than its kernel; the contract says so to clients."""
    path = convolution(tmp_path / "sound.onnx", kernel, rank=rank)
    mar = package(path, PackageSettings(model_store=tmp_path))
    found = archive.read(mar).contract
    assert found is not None
    assert found.batch_axis == "n"
    assert found.bounds.get("length") == ((kernel, None) if kernel > 1 else None)
    with zipfile.ZipFile(mar) as zipped, zipped.open("golden.npz") as file:
        cases = read_golden(file)
    assert min(case.inputs["sound"].shape[2] for case in cases) == kernel


@pytest.mark.parametrize("kind", ["range", "slice"])
def test_a_text_is_no_longer_than_the_positions(kind: str, tmp_path: Path) -> None:
    """The contract says so to clients: 33 tokens of a model with 32 positions are no failed run."""
    b = Builder(np.random.default_rng(0))
    words, places = b.constant(b.weights(50, 4)), b.constant(b.weights(32, 4))
    length = b.op("Shape", "ids", start=1, end=2)
    if kind == "range":
        last = b.op("Squeeze", length)
        found = b.op("Gather", places, b.op("Range", np.array(0), last, np.array(1)))
    else:
        found = b.op("Slice", places, np.array([0]), length, np.array([0]))
    y = b.op("ReduceMean", b.op("Add", b.op("Gather", words, "ids"), found), np.array([1]))
    graph = helper.make_graph(
        b.nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", 1, 4])],
        b.constants,
    )
    path = tmp_path / "text.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    found_contract = archive.read(package(path, PackageSettings(model_store=tmp_path))).contract
    assert found_contract is not None
    assert found_contract.bounds["length"] == (1, 32)
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "text.mar")]).output
    assert "ids 0 to 49" in shown


def test_multiples_of_a_number_have_no_largest_size() -> None:
    """65 is refused as all odd ones are; 128 is not."""
    spec = TensorSpec("x", "float32", ("n", "length"))
    contract = Contract((spec,), (), ("m.onnx",), "", 20)

    def run(inputs: Arrays) -> Arrays:
        if inputs["x"].shape[1] % 4:
            raise ModelError("refused")
        return {}

    assert with_largest_sizes(contract, run, [4, 64]).bounds == {}


def test_what_is_too_large_to_be_tried_is_not_refused() -> None:
    """Rows of 8 KB: 1,024 are the most that a trial may hold, and no bound of the model."""
    spec = TensorSpec("x", "float32", ("n", "length", 2048))
    contract = Contract((spec,), (), ("m.onnx",), "", 20)
    assert with_largest_sizes(contract, lambda inputs: inputs, [512, 1024]).bounds == {}


def test_the_least_sizes_of_two_inputs_depend_on_each_other() -> None:
    """No bound refuses sizes that the model takes: here any, if one is no less than the other."""
    spec = [TensorSpec(name, "float32", ("n", name)) for name in ("a", "b")]
    contract = Contract(tuple(spec), (), ("m.onnx",), "", 20)

    def run(inputs: Arrays) -> Arrays:
        if inputs["a"].shape[1] < inputs["b"].shape[1] or inputs["b"].shape[1] < 3:
            raise ModelError("refused")
        return {}

    assert with_least_sizes(contract, run).bounds == {"a": (3, None), "b": (3, None)}
    assert with_least_sizes(contract, lambda inputs: inputs).bounds == {}

    def run_joined(inputs: Arrays) -> Arrays:
        if inputs["a"].shape[1] + inputs["b"].shape[1] < 5:
            raise ModelError("refused")
        return {}

    assert with_least_sizes(contract, run_joined).bounds == {}
