"""ONNX Runtime's own lines, `[W:onnxruntime:...`, do not reach the terminal: errors are ours."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from marship.contract import Contract, TensorSpec
from marship.errors import ModelError
from marship.optimizing import trial
from marship.optimizing.source import ExportedModel
from marship.optimizing.step import PASSES
from marship.proof import parity

pytestmark = pytest.mark.slow

WIDTH = 16


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that makes ONNX Runtime warn, and log an error at an odd number of rows.

    It states 99 rows for what comes out, whatever goes in, and has a weight that nothing uses.
    """
    constants = {
        "w": np.eye(WIDTH, dtype=np.float32),
        "unused": np.ones((3, 3), np.float32),
        "halves": np.array([-1, 2, WIDTH]),
        "back": np.array([-1, WIDTH]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Reshape", ["m", "halves"], ["h"]),
            helper.make_node("Sigmoid", ["h"], ["s"]),
            helper.make_node("Reshape", ["s", "back"], ["r"]),
            helper.make_node("Sin", ["r"], ["y"]),
        ],
        "loud",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [99, WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = tmp_path_factory.mktemp("loud") / "loud.onnx"
    sets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), path)
    return path


def rows(count: int) -> dict[str, np.ndarray]:
    """Inputs of so many rows."""
    return {"x": np.ones((count, WIDTH), np.float32)}


def test_the_model_is_loud(loud: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Otherwise the tests below would show nothing."""
    session = onnxruntime.InferenceSession(str(loud), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="Reshape"):
        session.run(None, rows(3))
    session.run(None, rows(2))
    err = capfd.readouterr().err
    assert "[W:onnxruntime" in err
    assert "[E:onnxruntime" in err


def test_runs_of_proofs_write_nothing(loud: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither as the file is loaded, nor as it warns, nor as it fails: the error has the reason."""
    run = parity.runner(loud)
    run(rows(2))
    with pytest.raises(ModelError, match="Reshape"):
        run(rows(3))
    assert capfd.readouterr().err == ""


def test_passes_write_nothing(
    loud: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the sessions of ONNX Runtime's quantizers, too; afterwards it logs as before."""
    specs = TensorSpec("x", "float32", ("n", WIDTH)), TensorSpec("y", "float32", ("n", WIDTH))
    contract = Contract(specs[:1], specs[1:], (loud.name,), "", 20, "n")
    built = trial.build_all(ExportedModel(loud, contract, rows(8)), PASSES, tmp_path)
    assert sum(variant.file is not None for variant in built) >= 3
    assert "onnxruntime:" not in capfd.readouterr().err
    onnxruntime.InferenceSession(str(loud), providers=["CPUExecutionProvider"])
    assert "[W:onnxruntime" in capfd.readouterr().err


def test_packing_writes_nothing_of_the_runtime(loud: Path, tmp_path: Path) -> None:
    """Sizes that the model refuses are tried; the terminal shows our own lines alone."""
    words = [sys.executable, "-m", "marship", "package", str(loud), "--model-store", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "onnxruntime" not in done.stderr + done.stdout
