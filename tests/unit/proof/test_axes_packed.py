"""Axes that vary together keep together on the way into an archive, whatever a file calls them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from marship.contract import Arrays, Contract, TensorSpec
from marship.errors import ModelError
from marship.packaging.step import PackageSettings, package
from marship.proof import axes, onnx_proof
from models import row_filter
from onnx_zoo import Builder

pytestmark = pytest.mark.slow

F = TensorProto.FLOAT
ANONYMOUS = (None, -1, "?", "")


def value(name: str, shape: Sequence[Any], kind: int = F) -> onnx.ValueInfoProto:
    """A tensor; an axis may be a size, a name, or nothing."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def write(
    path: Path,
    builder: Builder,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> Path:
    """Save what was built; the checker takes no sizes below 0, which ONNX Runtime takes."""
    body = helper.make_graph(builder.nodes, "g", inputs, outputs, builder.constants)
    sets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(body, opset_imports=sets, ir_version=9), path)
    return path


def proven(path: Path) -> Contract:
    """The contract as packing finds it."""
    wishes = onnx_proof.Wishes(proof_seconds=10)
    return onnx_proof._prove(path, path.parent, wishes).contract  # in this process, for speed


def shapes(contract: Contract) -> list[tuple[int | str, ...]]:
    """Of the inputs, then of the outputs."""
    return [spec.shape for spec in (*contract.inputs, *contract.outputs)]


@pytest.mark.parametrize("axis", ANONYMOUS)
def test_rows_without_a_name_are_batched(tmp_path: Path, axis: Any) -> None:
    """Of one input, and of three that are concatenated, as skl2onnx writes columns."""
    b = Builder(np.random.default_rng(0))
    y = b.op("MatMul", b.op("Concat", "a", "b", "c", axis=1), b.weights(4, 2))
    inputs = [value("a", (axis, 1)), value("b", (axis, 2)), value("c", (axis, 1))]
    found = proven(write(tmp_path / "m.onnx", b, inputs, [value(y, (axis, 2))]))
    assert found.batch_axis == "batch"
    assert shapes(found) == [("batch", 1), ("batch", 2), ("batch", 1), ("batch", 2)]


@pytest.mark.parametrize("axis", [*ANONYMOUS, "side"])
def test_equal_names_of_different_sizes_are_told_apart(tmp_path: Path, axis: Any) -> None:
    """Height and width of a picture, under one name or none."""
    b = Builder(np.random.default_rng(0))
    y = b.op("Conv", "x", b.weights(3, 3, 1, 1))
    path = write(tmp_path / "m.onnx", b, [value("x", ("n", 3, axis, axis))],
                 [value(y, ("n", 3, axis, axis))])  # fmt: skip
    found = proven(path)
    (n, _, height, width), output = shapes(found)
    assert found.batch_axis == n == "n"
    assert height != width
    assert output == ("n", 3, height, width)


def test_queries_and_documents_may_differ_in_number(tmp_path: Path) -> None:
    """Both state n rows; a table of n by n has none for a request, so nothing is batched."""
    b = Builder(np.random.default_rng(0))
    y = b.op("MatMul", "q", b.op("Transpose", "d", perm=[1, 0]))
    path = write(tmp_path / "m.onnx", b, [value("q", ("n", 4)), value("d", ("n", 4))],
                 [value(y, ("n", "n"))])  # fmt: skip
    found = proven(path)
    assert shapes(found) == [("n", 4), ("d_0", 4), ("n", "d_0")]
    assert found.batch_axis is None


def test_two_networks_side_by_side_stay_in_one_batch(tmp_path: Path) -> None:
    """They would run with different numbers of rows, too; batched they are faster."""
    b = Builder(np.random.default_rng(0))
    outputs = [value(b.op("Relu", x), ("n", 4)) for x in ("q", "d")]
    path = write(tmp_path / "m.onnx", b, [value("q", ("n", 4)), value("d", ("n", 4))], outputs)
    assert proven(path).batch_axis == "n"


def test_texts_and_their_length_under_one_name_are_told_apart(tmp_path: Path) -> None:
    """Joined along an axis that is the length as well, requests would get values of nobody."""
    b = Builder(np.random.default_rng(0))
    y = b.op("Gather", b.constant(b.weights(50, 4)), "ids")
    path = write(tmp_path / "m.onnx", b, [value("ids", ("N", "N"), TensorProto.INT64)],
                 [value(y, ("N", "N", 4))])  # fmt: skip
    found = proven(path)
    assert shapes(found) == [("N", "ids_1"), ("N", "ids_1", 4)]
    assert found.batch_axis == "N"


def test_square_tables_are_not_joined(tmp_path: Path) -> None:
    """Rows of a table that is as wide as it is high cannot be put under another's."""
    b = Builder(np.random.default_rng(0))
    y = b.op("Add", "x", b.op("Transpose", "x", perm=[1, 0]))
    path = write(tmp_path / "m.onnx", b, [value("x", ("n", "n"))], [value(y, ("n", "n"))])
    found = proven(path)
    assert shapes(found) == [("n", "n"), ("n", "n")]
    assert found.batch_axis is None
    assert axes.obstacle(found) == "n is not the number of rows alone: x: float32[n, n]"


def test_an_encoder_and_its_decoder_have_lengths_of_their_own(tmp_path: Path) -> None:
    """Tokens of one text and of the other, where the file states one length for both."""
    b = Builder(np.random.default_rng(0))
    scores = b.op("MatMul", "target", b.op("Transpose", "source", perm=[0, 2, 1]))
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), "source")
    path = write(tmp_path / "m.onnx", b,
                 [value("source", ("n", "L", 4)), value("target", ("n", "L", 4))],
                 [value(y, ("n", "L", 4))])  # fmt: skip
    source, target, output = shapes(proven(path))
    assert source[1] != target[1]
    assert output == target
    assert source[0] == target[0] == "n"


def passing_rows(b: Builder, kind: str) -> str:
    """Rows of x, float32 (n, 3), that pass a test which hardly any row fails."""
    first = b.op("ReduceMax", "x", np.array([1]), keepdims=0)
    limit = b.op("Add", b.op("ReduceMax", first, keepdims=0), 9.0)
    if kind == "compress":
        return b.op("Compress", "x", b.op("Less", first, limit), axis=0)
    places = b.op("NonZero", b.op("Less", first, limit))
    return b.op("GatherND", "x", b.op("Transpose", places, perm=[1, 0]))


@pytest.mark.parametrize("axis", ["n", *ANONYMOUS])
@pytest.mark.parametrize("kind", ["compress", "nonzero"])
def test_rows_that_depend_on_values_are_never_the_batch(
    tmp_path: Path, kind: str, axis: Any
) -> None:
    """Even where all rows that are tried pass."""
    b = Builder(np.random.default_rng(0))
    y = passing_rows(b, kind)
    path = write(tmp_path / "m.onnx", b, [value("x", (axis, 3))], [value(y, (axis, 3))])
    found = proven(path)
    assert found.batch_axis is None
    assert found.outputs[0].shape[0] != found.inputs[0].shape[0]


def test_boxes_are_never_the_batch(tmp_path: Path) -> None:
    """NonMaxSuppression: the rows that it selects are not the pictures'."""
    b = Builder(np.random.default_rng(0))
    y = b.op("NonMaxSuppression", "boxes", "scores", np.array([3]), np.float32(0.5).reshape(()),
             np.float32(0.0).reshape(()))  # fmt: skip
    path = write(tmp_path / "m.onnx", b,
                 [value("boxes", ("n", "k", 4)), value("scores", ("n", 1, "k"))],
                 [value(y, ("n", 3), TensorProto.INT64)])  # fmt: skip
    found = proven(path)
    assert found.batch_axis is None
    assert found.outputs[0].shape == (f"{y}_0", 3)
    assert found.inputs[0].shape[1] == found.inputs[1].shape[2] == "k"


def test_throughput_without_rows_to_join_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, and only where batches were asked for."""
    path = row_filter(tmp_path / "filter.onnx")
    package(path, PackageSettings(model_store=tmp_path, profile="throughput"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("requests run alone: output y: float32[y_0, 2] has no row for")
    package(path, PackageSettings(model_store=tmp_path))
    assert "run alone" not in capsys.readouterr().err


def stated(*shapes_: tuple[int | str, ...], outputs: Sequence[tuple[int | str, ...]]) -> Contract:
    """A contract of float32 tensors a, b ... and y0, y1 ..."""
    inputs = tuple(TensorSpec("abcd"[i], "float32", s) for i, s in enumerate(shapes_))
    given_ = tuple(TensorSpec(f"y{i}", "float32", s) for i, s in enumerate(outputs))
    return Contract(inputs, given_, ("m.onnx",), "", 20)


@settings(max_examples=40, deadline=None)
@given(true=st.lists(st.integers(0, 3), min_size=2, max_size=4), names=st.data())
def test_any_names_end_in_the_sizes_that_vary_together(
    true: list[int], names: st.DataObject
) -> None:
    """A model that takes only equal sizes of some axes, whatever names they are given."""
    claimed = names.draw(st.lists(st.sampled_from("pqr"), min_size=len(true), max_size=len(true)))

    def run(inputs: Arrays) -> Arrays:
        sizes = inputs["a"].shape
        for group in set(true):
            if len({size for size, one in zip(sizes, true, strict=True) if one == group}) > 1:
                raise ModelError("other sizes")
        return {"y0": np.zeros(sizes[::-1], np.float32)}

    contract = stated(tuple(claimed), outputs=[tuple(claimed[::-1])])
    found = axes.resolved(contract, run)
    shape = found.inputs[0].shape
    pairs = [(i, j) for i in range(len(true)) for j in range(i)]
    assert all((shape[i] == shape[j]) == (true[i] == true[j]) for i, j in pairs)
    assert found.outputs[0].shape == shape[::-1]


def joined(groups: Sequence[int], names: Sequence[str]) -> tuple[Contract, list[int]]:
    """The contract found of a model of many inputs, and what its runs cost.

    Args:
        groups: By input, the number of its group: inputs of one group take one size alone.
        names: By input, what its axis is called.
    """
    runs = [0]

    def run(inputs: Arrays) -> Arrays:
        runs[0] += 1
        sizes = [len(array) for array in inputs.values()]
        if len(set(zip(groups, sizes, strict=True))) > len(set(groups)):
            raise ModelError("other sizes")
        return {"y": np.zeros((sizes[0], 1), np.float32)}

    inputs = tuple(TensorSpec(f"x{i}", "float32", (name, 1)) for i, name in enumerate(names))
    output = TensorSpec("y", "float32", ("y_0", 1))
    contract = Contract(inputs, (output,), ("m.onnx",), "", 20)
    return axes.resolved(contract, run, has_rows=False), runs


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 7), min_size=1, max_size=4),
    kind=st.sampled_from(["anonymous", "by group"]),
)
def test_many_inputs_of_several_groups_are_told_apart(sizes: list[int], kind: str) -> None:
    """Those of a group follow each other, as an encoder's inputs and a decoder's do."""
    groups = [number for number, count in enumerate(sizes) for _ in range(count)]
    anonymous = [f"x{i}_0" for i in range(len(groups))]
    by_group = [f"n{group}" for group in groups]
    found, _ = joined(groups, anonymous if kind == "anonymous" else by_group)
    firsts = [spec.shape[0] for spec in found.inputs]
    assert len(set(firsts)) == len(sizes)
    assert len(set(zip(groups, firsts, strict=True))) == len(sizes)


def test_caches_of_one_name_keep_it() -> None:
    """Each layer's would run at a length of its own, and nobody has such ones."""
    found, (runs,) = joined([layer for layer in range(12) for _ in "kv"], ["past"] * 24)
    assert {spec.shape[0] for spec in found.inputs} == {"past"}
    assert runs < 250


@pytest.mark.parametrize("kind", ["anonymous", "alike"])
def test_the_runs_grow_in_proportion_to_the_inputs(kind: str) -> None:
    """A table of 60 columns has 60 inputs, and a decoder a cache for each layer."""
    costs = []
    for count in (15, 30, 60):
        names = ["n"] * count if kind == "alike" else [f"x{i}_0" for i in range(count)]
        found, runs = joined([0] * count, names)
        assert {spec.shape[0] for spec in (*found.inputs, *found.outputs)} in ({"batch"}, {"n"})
        costs += runs
    assert costs[1] < 2.2 * costs[0]
    assert costs[2] < 2.2 * costs[1]
    assert costs[2] < 600
