"""The demos: scripts that bash reads, and what `make demo-private` asks and prints."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

import private_runs
from marship.private import HeClient, step

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ask_private() -> ModuleType:
    """demos/ask_private.py."""
    spec = importlib.util.spec_from_file_location("ask", REPOSITORY / "demos" / "ask_private.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "script", sorted((REPOSITORY / "demos").glob("*.sh")), ids=lambda p: p.stem
)
def test_demos_are_made_by_name(script: Path) -> None:
    """Bash reads each, and the Makefile runs it."""
    subprocess.run(["/bin/bash", "-n", script], check=True)
    assert f"bash demos/{script.name}" in (REPOSITORY / "Makefile").read_text()


def test_a_private_model_is_held_against_the_open_one(
    ask_private: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right answers of both, the same digits, and the bytes that went over the wire."""
    run = private_runs.run_folder(tmp_path / "run")
    rows = private_runs.numbers(20, private_runs.INPUTS, seed=8)
    (logits,) = onnxruntime.InferenceSession(run / "model.onnx").run(None, {"x": rows})
    labels = logits.argmax(1)
    labels[:3] = (labels[:3] + 1) % private_runs.OUTPUTS  # what both get wrong
    np.savez(run / "heldout.npz", pixels=rows, **{"target/label": labels})
    step.compile_run(run)
    done = step.package(run, step.PackageSettings(model_store=tmp_path / "store"))
    monkeypatch.setenv("MARSHIP_CLIENT_KEYS", str(tmp_path / "client-keys"))
    server = private_runs.InProcess(private_runs.loaded(done.archive, tmp_path / "extracted"))
    wire = ask_private.Wire(server)
    found = ask_private.asked(HeClient(done.client_file, wire), wire, run, 12)
    assert (found.rows, found.right, found.right_open, found.same) == (12, 9, 9, 12)
    assert found.difference < 0.01
    assert found.first_bytes > 10 * len(found.sent)
    assert found.sent in server.bodies
    table = ask_private.columns(found, encrypted=True)
    assert table["right, asked in private"] == "9 of 12"
    assert table["sent for a picture"] == f"{len(found.sent):,} bytes"
    assert ask_private.dumped(found.sent).startswith("          0  4d 48 45 31 51 ")
    assert ask_private.columns(found, encrypted=False)["sent once: keys"] == "none"


def test_a_picture_is_drawn_by_its_shades(ask_private: ModuleType) -> None:
    """White is the fullest letter, black is none."""
    picture = np.zeros(64)
    picture[9], picture[63] = 16, 8
    lines = ask_private.drawn(picture).splitlines()
    assert [len(line) for line in lines] == [20] * 8
    assert lines[1] == "      @@" + 12 * " "
    assert lines[7].strip() == "=="
    assert lines[0].strip() == ""
