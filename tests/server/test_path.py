"""The whole path by its commands: train, export, optimize, package, serve, predict, scale, stop."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from forked import Forked
from marship import Client
from marship.fit.checkpoint import load_weights
from marship.fit.recipe import resolve
from small_disk import run_on

Command = Callable[..., subprocess.CompletedProcess[str]]
FORKED = {"training/regression.py", "export", "optimize"}


@pytest.fixture(scope="module")
def run(place: Path) -> Command:
    """Run a command there; it must succeed unless another exit code is expected.

    What imports PyTorch or ONNX Runtime is forked from a process that has done so.
    """

    def call(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        if FORKED & set(words):
            with Forked(*map(str, words), folder=place, COLUMNS="160") as process:
                done = process.wait(600)
            assert done.returncode == code, done.stdout + done.stderr
            return done
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=place,
            env={**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


@pytest.fixture(scope="module")
def marship(run: Command) -> Command:
    """Run a marship command there."""

    def call(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        return run("-m", "marship", *words, code=code)

    return call


@pytest.fixture(scope="module")
def served(place: Path, run: Command, marship: Command) -> Iterator[Client]:
    """The regression recipe's model, brought to a server by nothing but commands."""
    run("training/regression.py", "--epochs", 5)
    marship("export", "runs/regression")
    marship("optimize", "runs/regression", "--variant", "float32")
    marship("package", "runs/regression", "--batch-size", 8, "--max-workers", 2)
    marship("serve", "--detach", "--free-ports")
    try:
        marship("register", "regression", "--workers", 1)
        with Client(place / ".marship") as client:
            yield client
    finally:
        marship("stop")


def patients(place: Path) -> np.ndarray:
    """Held-out patients, float32 (rows, 10)."""
    with np.load(place / "runs/regression/heldout.npz") as held:
        return held["input"]


def test_the_served_model_equals_the_trained_one(place: Path, served: Client) -> None:
    """Every held-out prediction over HTTP is PyTorch's, within the contract's tolerance."""
    model = resolve(str(place / "training/regression.py:Regression"))()
    load_weights(place / "runs/regression/checkpoint.pt", model)
    rows = patients(place)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(rows)).numpy()
    got = served.predict("regression", {"input": rows})["output"]
    tolerance = json.loads((place / "runs/regression/contract.json").read_text())["tolerance"]
    np.testing.assert_allclose(got, wanted, rtol=tolerance["rtol"], atol=tolerance["atol"])


def test_predict_takes_files_and_text(place: Path, served: Client, marship: Command) -> None:
    """JSON as text and as a file, and npy, give the same response."""
    del served
    row = patients(place)[:1]
    np.save(place / "row.npy", row)
    (place / "row.json").write_text(json.dumps({"input": row.tolist()}))
    text = marship("predict", "regression", "--json", json.dumps({"input": row.tolist()})).stdout
    assert json.loads(text)["output"]
    assert marship("predict", "regression", "row.json").stdout == text
    npy = marship("predict", "regression", "row.npy").stdout
    assert float(npy.strip(" []\n")) == pytest.approx(json.loads(text)["output"][0][0], rel=1e-4)


def test_commands_manage_the_model(served: Client, marship: Command) -> None:
    """scale, describe, models and status show what the server has."""
    assert "2 ready" in marship("scale", "regression", 2).stdout
    assert served.describe("regression")[0].ready == 2
    assert "2 ready" in marship("describe", "regression").stdout
    assert "regression" in marship("models").stdout
    status = marship("status").stdout
    assert "inference" in status
    assert "key_file.json" in status
    assert "1 ready" in marship("scale", "regression", 1).stdout
    assert marship("logs", "--lines", 3).stdout


def test_a_new_version_serves_when_it_is_made_the_default(
    served: Client, place: Path, marship: Command
) -> None:
    """A second version is registered beside the first, becomes the default, and the first goes."""
    marship("package", "runs/regression", "--version", "2.0", "--model-store", "new")
    shutil.copy(place / "new/regression.mar", place / "model_store/regression-2.mar")
    marship("register", "regression-2", "--name", "regression")
    assert served.describe("regression")[0].version == "1.0"
    marship("set-default", "regression", "2.0")
    assert served.describe("regression")[0].version == "2.0"
    marship("unregister", "regression", "--version", "1.0")
    assert [m.version for m in served.describe("regression", "all")] == ["2.0"]
    assert served.predict("regression", {"input": patients(place)[:2]})["output"]


def test_inspect_prints_the_evidence(served: Client, marship: Command) -> None:
    """It shows contract, settings, data, training, parity and variants."""
    del served
    text = marship("inspect", "model_store/regression.mar").stdout
    for words in ("input: float32[batch, 10]", "diabetes", "r2", "PyTorch, eager", "minWorkers"):
        assert words in text
    whole = json.loads(marship("inspect", "model_store/regression.mar", "--json").stdout)
    assert whole["evidence"]["optimize"]["chosen"]
    assert whole["evidence"]["settings"]["epochs"] == 5


BAD = {
    "no such run": (["export", "runs/absent"], 2, "recipe.json"),
    "no such archive file": (["inspect", "absent.mar"], 2, "absent.mar must be a .mar file"),
    "not in the store": (["register", "absent"], 1, "absent.mar"),
    "a path": (["register", "../x.mar"], 2, "the name of a file in the model store"),
    "no such model": (["predict", "absent", "--json", "1"], 1, "absent"),
    "no request": (["predict", "regression"], 2, "one request must be given"),
    "broken JSON": (["predict", "regression", "--json", "{"], 2, "--json must be JSON"),
    "refused": (["predict", "regression", "--json", '{"x": 1}'], 1, "without input"),
    "no file": (["predict", "regression", "absent.json"], 2, "absent.json must be a file"),
    "served already": (["serve", "--detach"], 1, "marship stop"),
    "unknown command": (["serv"], 2, "serv"),
    "unknown flag": (["serve", "--prot", "1"], 2, "--prot"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line(served: Client, marship: Command, case: str) -> None:
    """Each mistake is one line on stderr, with 2 for usage and 1 for failure."""
    del served
    words, code, line = BAD[case]
    done = marship(*words, code=code)
    assert done.stdout == ""
    assert done.stderr.startswith("error (")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_commands_without_a_server_say_how_to_start_one(tmp_path: Path, marship: Command) -> None:
    """Every command that needs a server fails with the same hint."""
    for words in (["models"], ["register", "x"], ["stop"], ["status"], ["scale", "x", "1"]):
        done = marship(*words, "--home", tmp_path / "none", code=1)
        assert "must run in" in done.stderr
        assert done.stderr.count("\n") == 1


def test_steps_that_have_nothing_to_do_say_so(
    served: Client, run: Command, marship: Command
) -> None:
    """A second run trains, exports and optimizes nothing."""
    del served
    assert "epoch" not in run("training/regression.py", "--epochs", 5).stdout.replace(
        "--epochs", ""
    )
    assert "--again" in marship("export", "runs/regression").stdout
    assert "--again" in marship("optimize", "runs/regression", "--variant", "float32").stdout


def test_a_full_disk_leaves_the_old_archive(served: Client, place: Path, tmp_path: Path) -> None:
    """Packaging into a full model store is one line, and what lay there stays."""
    del served
    script = (
        'echo old > "$0/regression.mar" && '
        '"$1" -m marship package runs/regression --model-store "$0"; cat "$0"/*; ls -A "$0"'
    )
    done = run_on(tmp_path / "full", 64, script, sys.executable, cwd=place)
    assert "no space left" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout.split() == ["old", "regression.mar"]


def runs(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_left_after_stop(place: Path, marship: Command) -> None:
    """serve, then stop: no process, no socket and no temporary file remain."""
    home = place / "other-home"
    marship("serve", "--detach", "--free-ports", "--home", home)
    java = psutil.Process(json.loads((home / "server.json").read_text())["pid"])
    processes = [java, *java.children(recursive=True)]
    marship("stop", "--home", home)
    assert not [process for process in processes if runs(process)]
    assert not list(home.rglob("*.sock*"))
