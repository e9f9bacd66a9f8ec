"""The table of models: verdicts, groups of refusals, resuming, and five models for real."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from marship.errors import LoadError, ModelError

FOLDER = Path(__file__).parents[2] / "benchmarks"
Part = Callable[[str], ModuleType]


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Part:
    """Import a file of benchmarks/, as models.py does: from its own folder."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def doubled(folder: Path) -> Path:
    """A file of y = 2 x, for any number of rows."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    path = folder / "doubled.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


def sample(part: Part, give: Callable[[Path], Any], name: str = "m") -> Any:
    """A model that gives what the function gives."""
    return part("collection.sample").Sample("kind", name, give)


@pytest.mark.parametrize(
    ("error", "verdict", "remark"),
    [
        (ModelError("x must be y, got z."), "refused", "x must be y, got z."),
        (LoadError("two\nlines"), "refused", "two lines"),
        (ModelError("got: Traceback (most recent call last)"), "traceback", "ModelError: got"),
        (
            ModelError("m must be loaded and run on a few inputs, got: TypeError: no. It may"),
            "traceback",
            "ModelError: m must",
        ),
        (
            ModelError("m must be loaded and run on a few inputs, got: a crash (SIGSEGV)."),
            "refused",
            "m must be loaded",
        ),
        (KeyError("x"), "traceback", "KeyError: 'x' (test_model_table.py:"),
    ],
)
def test_an_error_is_a_refusal_or_a_traceback(
    part: Part, error: Exception, verdict: str, remark: str
) -> None:
    """Our own errors refuse; others, and those that carry another's text, are faults."""
    with pytest.raises(type(error)) as caught:
        raise error
    found = part("collection.trial").judged(caught.value)
    assert found[0] == verdict
    assert found[1].startswith(remark)


@pytest.mark.parametrize(
    ("status", "verdict"), [(400, "refused"), (413, "refused"), (500, "traceback")]
)
def test_a_refused_request_is_a_refusal_and_a_failed_one_a_fault(
    part: Part, status: int, verdict: str
) -> None:
    """The client's mistake is told apart from the server's."""
    error = part("collection.served").AnsweredError(status, "why")
    assert part("collection.trial").judged(error) == (verdict, f"{status}: why")


@pytest.mark.parametrize(("factor", "verdict"), [(2.0, "equal"), (2.0001, "equal"), (2.1, "wrong")])
def test_an_answer_is_held_against_the_reference(
    part: Part, factor: float, verdict: str, tmp_path: Path
) -> None:
    """Within the contract's tolerance it is equal, in all formats and in a batch."""

    def give(folder: Path) -> Any:
        kinds = part("collection.sample")
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        wanted = (x * factor).astype(np.float32)
        return kinds.Given(str(doubled(folder)), [kinds.Case({"x": x}, {"y": wanted})])

    outcome = part("collection.trial").tried(sample(part, give), tmp_path)
    assert outcome.verdict == verdict, outcome
    assert outcome.inputs == "x: float32[n, 3]"
    assert outcome.seconds > 0
    if verdict == "wrong":
        assert outcome.remark == "in JSON, y differs by 0.5, relatively 0.048"
    else:
        assert outcome.remark == "batched"


def test_what_onnx_runtime_does_not_run_is_not_tried(part: Part, tmp_path: Path) -> None:
    """Nothing can be said about such a file."""
    reference = part("collection.reference")

    def give(folder: Path) -> Any:
        return reference.outputs(doubled(folder), {"x": np.zeros((1, 2), np.float32)})

    outcome = part("collection.trial").tried(sample(part, give), tmp_path)
    assert outcome.verdict == "not run by ONNX Runtime"
    assert "Got: 2 Expected: 3" in outcome.remark


@pytest.mark.parametrize("narrow", ["bfloat16", "float8_e5m2", "int4"])
def test_the_reference_has_types_that_numpy_lacks(part: Part, narrow: str, tmp_path: Path) -> None:
    """They go into ONNX Runtime and come out by their bits, of which int4 has two in a byte."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, narrow)))
    x, y = (helper.make_tensor_value_info(name, kind, [3]) for name in "xy")
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "wide"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=kind),
    ]
    path, opsets = tmp_path / "m.onnx", [helper.make_opsetid("", 21)]
    graph = helper.make_graph(nodes, "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    given = np.float32([1, -3, 2]).astype(getattr(ml_dtypes, narrow))
    found = part("collection.reference").outputs(path, {"x": given})["y"]
    assert found.dtype == ("int8" if narrow == "int4" else "float32")
    assert found.tolist() == [2, -6, 4]


def test_json_is_held_against_what_it_can_tell(part: Part) -> None:
    """NaN and infinity are null there; the other formats have them."""
    wanted = np.array([1, np.inf, np.nan], np.float32)
    assert part("collection.trial").as_sent(wanted, "raw") is wanted
    np.testing.assert_array_equal(
        part("collection.trial").as_sent(wanted, "JSON"), [1, np.nan, np.nan]
    )


def test_the_page_counts_lists_and_groups(part: Part) -> None:
    """Counts by kind, models by name without single operators, and reasons by their form."""
    outcome = part("collection.trial").Outcome
    found = [
        outcome("ONNX node tests", "add", "equal", "one by one", "x: float32[3]", 1.0),
        outcome("ONNX node tests", "a", "refused", "x1 must be a tensor, got a map of type 1."),
        outcome("ONNX node tests", "b", "refused", "x22 must be a tensor, got a map of type 2."),
        outcome("tabular models", "tree", "equal", "batched", "x: float32[n, 3]", 3.0),
        outcome("PyTorch modules", "net", "traceback", "KeyError: 'x' (a.py:1)"),
    ]
    text = part("collection.page").text(found)
    assert "| ONNX node tests | 3 | 1 | 2 | 0 | 0 | 0 |" in text
    assert "| all | 5 | 2 | 2 | 0 | 1 | 0 |" in text
    assert "| tabular models | tree | `x: float32[n, 3]` | equal | 3.0 | batched |" in text
    assert "| add |" not in text
    assert "| ONNX node tests | 2 | x1 must be a tensor, got a map of type 1. | a, b |" in text
    assert "## Traceback\n\nWhat `python benchmarks/models.py` found:\n\n| kind | models |" in text
    assert "Of 3 ONNX's own tests that ONNX Runtime runs, 33.3 % are served equal." in text


def test_an_interrupted_run_resumes(part: Part, tmp_path: Path) -> None:
    """Each line of the results is one outcome."""
    outcome = part("collection.trial").Outcome("k", "n", "equal", "batched", "x: float32[3]", 1.5)
    results, path = part("collection.results"), tmp_path / "results.jsonl"
    assert results.read(path) == {}
    results.add(path, outcome)
    assert results.read(path) == {("k", "n"): outcome}


def test_a_crash_is_one_models_own(part: Part, tmp_path: Path) -> None:
    """The process of a model may end in any way; the next one is tried."""
    samples = [
        sample(part, lambda _: os.abort(), "crash"),
        sample(part, lambda _: 1 / 0, "error"),
    ]
    found = {o.name: o for o in part("collection.processes").outcomes(samples, tmp_path, 2)}
    assert found["crash"].verdict == found["error"].verdict == "traceback"
    assert found["crash"].remark.startswith("the process ended with -6")
    assert found["error"].remark.startswith("ZeroDivisionError: division by zero (test_model")
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_drawn_as_described(part: Part) -> None:
    """Types, shapes, bounds and given values."""
    drawn, generator = part("collection.sample").drawn, np.random.default_rng(0)
    assert drawn("float32[2, 3]", generator).shape == (2, 3)
    assert drawn("int64[50]<7", generator).max() == 6
    assert drawn("int64[]=16000", generator) == 16000
    assert not drawn("bool[3]=0", generator).any()
    assert drawn("str[2]", generator).dtype == object
    with pytest.raises(ValueError, match="describes no array"):
        drawn("float32", generator)


@pytest.mark.slow
def test_models_of_five_kinds_are_served_equal(part: Part, tmp_path: Path) -> None:
    """From a file of each kind to the reference's answers."""
    tests = part("collection.onnx_tests")
    wanted = {
        "ONNX simple tests": "single_relu_model",
        "ONNX tests from PyTorch": "Conv1d",
        "ONNX tests of PyTorch operators": "operator_permute2",
    }
    chosen = [
        next(item for item in tests.samples(kind) if item.name == name)
        for kind, name in wanted.items()
    ]
    chosen += [
        s for s in part("collection.pytorch").samples() if s.name in ("linear", "two towers")
    ]
    assert len(chosen) == 5
    for place, item in enumerate(chosen):
        folder = tmp_path / str(place)
        folder.mkdir()
        outcome = part("collection.trial").tried(item, folder)
        assert outcome.verdict == "equal", outcome
