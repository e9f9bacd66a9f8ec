"""Tensors of types that NumPy lacks become float32 or int8 at the border, value by value."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from marship.contract import WIDENED, Contract, TensorSpec
from marship.proof import widening
from marship.proof.cases import draw_random
from marship.proof.golden import draw_golden
from marship.proof.rowsets import RowDrawer
from marship.serving.formats.ranges import outside

OPSET, IR = 25, 13


def element(name: str) -> int:
    """ONNX's number of a type of ml_dtypes."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, name)))


def file_of(
    nodes: list[Any], narrow: str, *, out: str | None = None, opset: int = OPSET
) -> onnx.ModelProto:
    """A model of x, of a narrow type, and y."""
    x = helper.make_tensor_value_info("x", element(narrow), ["n"])
    y = helper.make_tensor_value_info("y", element(out or narrow), ["n"])
    graph = helper.make_graph(nodes, "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR)


def there_and_back(narrow: str) -> list[Any]:
    """Nodes from x to y by way of a type that ONNX Runtime computes in."""
    keeps_infinity = {"saturate": 0} if narrow.startswith("float8") else {}
    return [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["wide"], ["y"], to=element(narrow), **keeps_infinity),
    ]


def run(model: onnx.ModelProto, **inputs: Any) -> Any:
    """The only output."""
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, inputs)[0]


def every_value(narrow: str) -> Any:
    """All values of a type, as ml_dtypes has them."""
    kind = np.dtype(getattr(ml_dtypes, narrow))
    if WIDENED[narrow].dtype != "float32":
        limits = WIDENED[narrow]
        return np.arange(limits.low, limits.high + 1).astype(kind)
    return np.arange(1 << 8 * kind.itemsize).astype(f"uint{8 * kind.itemsize}").view(kind)


@pytest.mark.parametrize("narrow", WIDENED)
def test_every_value_passes_unchanged(narrow: str) -> None:
    """Each value of the type goes in and comes out as the number that ml_dtypes says it is."""
    model = file_of(there_and_back(narrow), narrow)
    assert widening.widened(model) == {"x": narrow, "y": narrow}
    values = every_value(narrow).astype(WIDENED[narrow].dtype)
    got = run(model, x=values)
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("narrow", WIDENED)
def test_the_range_is_that_of_ml_dtypes(narrow: str) -> None:
    """Smallest and largest value, and whether there is infinity."""
    with np.errstate(invalid="ignore"):  # NaN that signals
        values = every_value(narrow).astype(WIDENED[narrow].dtype).astype(np.float64)
    finite = values[np.isfinite(values)]
    limits = WIDENED[narrow]
    assert (limits.low, limits.high) == (finite.min(), finite.max())
    assert limits.has_infinity == np.isinf(values).any()


@pytest.mark.parametrize("narrow", [name for name in WIDENED if "float" in name])
def test_other_values_are_rounded_to_nearest(narrow: str) -> None:
    """As ml_dtypes rounds them."""
    limits = WIDENED[narrow]
    low, high = max(limits.low, -400), min(limits.high, 200)
    drawn = np.random.default_rng(0).uniform(low, high, 1000).astype(np.float32)
    model = file_of(there_and_back(narrow), narrow)
    widening.widened(model)
    wanted = drawn.astype(getattr(ml_dtypes, narrow)).astype(np.float32)
    np.testing.assert_array_equal(run(model, x=drawn), wanted)


def test_subgraphs_use_the_narrow_tensor() -> None:
    """A branch that reads an input and one that gives an output keep their types."""
    kind = element("bfloat16")
    branches = {
        name: helper.make_graph(
            [helper.make_node("Identity", ["x"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", kind, ["n"])],
        )
        for name in ("then_branch", "else_branch")
    }
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("", 9, (), [True]))
    model = file_of([yes, helper.make_node("If", ["yes"], ["y"], **branches)], "bfloat16")
    assert set(widening.widened(model)) == {"x", "y"}
    np.testing.assert_array_equal(run(model, x=np.float32([1, -2.5])), np.float32([1, -2.5]))


def test_names_that_are_taken_are_left_alone() -> None:
    """A tensor of the file may be called as the new one would be."""
    nodes = [
        helper.make_node("Identity", ["x"], ["x_narrow"]),
        helper.make_node("Identity", ["x_narrow"], ["y"]),
    ]
    model = file_of(nodes, "bfloat16")
    widening.widened(model)
    assert run(model, x=np.float32([3])) == [3]


def test_an_output_that_is_used_within_the_graph() -> None:
    """What comes after it still gets the narrow type."""
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    model = file_of(nodes, "float8_e5m2")
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n"]))
    assert set(widening.widened(model)) == {"x", "y"}
    assert run(model, x=np.float32([3])) == [3]


def test_what_cast_does_not_take_is_left() -> None:
    """An older set of operators has no Cast of the type, and ONNX Runtime none of float4."""
    assert widening.widened(file_of([], "bfloat16", opset=12)) == {}
    assert widening.widened(file_of([], "float4_e2m1fn")) == {}


def test_ordinary_files_are_left_alone() -> None:
    """Nothing changes, to the byte."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph)
    before = model.SerializeToString()
    assert widening.widened(model) == {}
    assert model.SerializeToString() == before


@pytest.mark.parametrize("narrow", WIDENED)
@pytest.mark.parametrize("has_table", [False, True])
def test_whatever_is_drawn_is_a_value_of_the_type(narrow: str, has_table: bool) -> None:
    """One example row at the type's limit has no range of its own; tables may be longer."""
    limits = WIDENED[narrow]
    spec = TensorSpec("x", limits.dtype, ("n", 4), narrow=narrow)
    if has_table:
        spec = replace(spec, value_range=(0, 100))
    contract = Contract((spec,), (TensorSpec("y", "float32", ("n", 4)),), ("m",), "", 25, "n")
    low, high = (min(max(edge, -1e30), 1e30) for edge in (limits.low, limits.high))
    examples = {"x": np.array([[low, high, high, 1]], limits.dtype)}
    drawer = RowDrawer(contract, examples, (1000.0,), 1, np.random.default_rng(0))
    drawn = [part["x"] for rows in drawer.sets({"n": 1}) for part in rows.parts]
    for given in (examples, None):
        drawn += [case.inputs["x"] for case in draw_golden(contract, given)]
        drawn += [draw_random(contract, given, {"n": 7}, seed).inputs["x"] for seed in range(3)]
    assert {array.dtype.name for array in drawn} == {limits.dtype}
    assert not [
        problem for array in drawn if (problem := outside(array, replace(spec, value_range=None)))
    ]
