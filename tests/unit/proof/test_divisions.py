"""A client's value must not end the process: divisions without a result, which x86 traps."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from marship.proof import divisions, onnx_proof

KINDS = {np.int32: TensorProto.INT32, np.int64: TensorProto.INT64}


def model_of(nodes: list[Any], kind: int, *names: str, functions: Any = ()) -> onnx.ModelProto:
    """A model of these inputs, all of one type, and of z."""
    inputs = [helper.make_tensor_value_info(name, kind, ["n"]) for name in names]
    z = helper.make_tensor_value_info("z", kind, ["n"])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, [z]),
        opset_imports=opsets, ir_version=10, functions=list(functions),
    )  # fmt: skip


def run(model: onnx.ModelProto, **inputs: Any) -> Any:
    """The output; a model that is not guarded may end the tests here."""
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, inputs)[0]


def ends_by(path: Path, kind: type) -> int:
    """How a process ends that divides the smallest number by -1 with this file."""
    code = (
        "import sys, numpy as np, onnxruntime as ort; kind = np.dtype(sys.argv[2]);"
        "x = np.array([np.iinfo(kind).min], kind);"
        "ort.InferenceSession(sys.argv[1]).run(None, {'x': x, 'y': np.array([-1], kind)})"
    )
    words = [sys.executable, "-c", code, str(path), np.dtype(kind).name]
    return subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_number_divided_by_minus_one(kind: type, tmp_path: Path) -> None:
    """A process that would end by a signal, or give the number itself, gives it."""
    model = model_of([helper.make_node("Div", ["x", "y"], ["z"])], KINDS[kind], "x", "y")
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path))
    unguarded = ends_by(path, kind)
    divisions.guard_file(path)
    assert unguarded < 0 or np.little_endian  # other processors than x86 do not trap
    assert ends_by(path, kind) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_quotient_stays(kind: type) -> None:
    """Quotients of drawn numbers, extremes among them, are those of the file as it was."""
    limits, generator = np.iinfo(kind), np.random.default_rng(0)
    edges = [limits.min, limits.min + 1, -2, -1, 1, 2, limits.max]
    numbers = np.array([*edges, *generator.integers(limits.min, limits.max, 50)], kind)
    divisors = np.array([*edges, *generator.integers(-9, -1, 20), *range(1, 9)], kind)
    x, y = (part.ravel() for part in np.meshgrid(numbers, divisors))
    keeps = ~((x == limits.min) & (y == -1))
    model = model_of([helper.make_node("Div", ["x", "y"], ["z"])], KINDS[kind], "x", "y")
    wanted = run(model, x=x[keeps], y=y[keeps])
    assert divisions.guarded(model) == 1
    np.testing.assert_array_equal(run(model, x=x[keeps], y=y[keeps]), wanted)
    assert run(model, x=numbers[:1], y=divisions_by_minus_one(kind)) == [limits.min]
    with pytest.raises(Exception, match="zero"):
        run(model, x=numbers[:1], y=np.zeros(1, kind))


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.UINT8])
def test_a_division_is_proven_without_an_example(operator: str, kind: int, tmp_path: Path) -> None:
    """Drawn numbers are 0 and 1, which no divisor may be: then 1 and 2 are drawn."""
    path = tmp_path / "m.onnx"
    onnx.save(model_of([helper.make_node(operator, ["x", "y"], ["z"])], kind, "x", "y"), str(path))
    found = onnx_proof.describe(path, tmp_path, onnx_proof.Wishes(proof_seconds=2))
    assert found.contract.batch_axis == "n"
    assert all((case.inputs["y"] > 0).all() for case in found.cases)
    assert all(spec.value_range is None for spec in found.contract.inputs)


def divisions_by_minus_one(kind: type) -> Any:
    """The divisor."""
    return np.array([-1], kind)


def test_within_branches_and_functions() -> None:
    """A Div of a subgraph and one of a local function are guarded, too."""
    div = helper.make_node("Div", ["a", "b"], ["c"])
    own = helper.make_function(
        "own", "Own", ["a", "b"], ["c"], [div], [helper.make_opsetid("", 18)]
    )
    call = helper.make_node("Own", ["x", "y"], ["z"], domain="own")
    inner = model_of([call], TensorProto.INT64, "x", "y", functions=[own])
    branches = {
        name: helper.make_graph(
            [helper.make_node(operator, ["x", "y"], [f"{name}_z"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_z", TensorProto.INT64, ["n"])],
        )
        for name, operator in (("then_branch", "Div"), ("else_branch", "Mul"))
    }
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("", 9, (), [True]))
    nodes = [yes, helper.make_node("If", ["yes"], ["z"], **branches)]
    for model in (inner, model_of(nodes, TensorProto.INT64, "x", "y")):
        assert divisions.guarded(model) == 1
        least = np.array([np.iinfo(np.int64).min])
        assert run(model, x=least, y=divisions_by_minus_one(np.int64)) == least


@pytest.mark.parametrize(("divisor", "count"), [(2, 0), (-1, 1)])
def test_constant_divisors(divisor: int, count: int) -> None:
    """Nothing is added where the divisor is a constant other than 0 and -1: most divisions."""
    nodes = [
        helper.make_node("Constant", [], ["y"], value_ints=[divisor]),
        helper.make_node("Div", ["x", "y"], ["z"]),
    ]
    assert divisions.guarded(model_of(nodes, TensorProto.INT64, "x")) == count


def test_floats_are_left_alone() -> None:
    """They have a result for everything."""
    model = model_of([helper.make_node("Div", ["x", "y"], ["z"])], TensorProto.FLOAT, "x", "y")
    before = model.SerializeToString()
    assert divisions.guarded(model) == 0
    assert model.SerializeToString() == before


def test_a_frame_length_of_zero_is_refused() -> None:
    """STFT divides by it: ONNX Runtime's process would end."""
    signal = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", 1])
    length = helper.make_tensor_value_info("length", TensorProto.INT64, [])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, "frames", "bins", 2])
    step = helper.make_node("Constant", [], ["step"], value=helper.make_tensor("", 7, (), [4]))
    stft = helper.make_node("STFT", ["x", "step", "", "length"], ["z"])
    graph = helper.make_graph([step, stft], "g", [signal, length], [z])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = np.ones((1, 64, 1), np.float32)
    wanted = run(model, x=x, length=np.array(16))
    assert divisions.guarded(model) == 1
    np.testing.assert_array_equal(run(model, x=x, length=np.array(16)), wanted)
    with pytest.raises(Exception, match="STFT"):
        run(model, x=x, length=np.array(0))
