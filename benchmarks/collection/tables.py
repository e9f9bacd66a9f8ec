"""Tabular models: scikit-learn's by skl2onnx, XGBoost's and LightGBM's by onnxmltools."""

import json
import subprocess
from functools import partial
from pathlib import Path

import venvs
from collection import reference
from collection.sample import Case, Given, Sample

from marship.contract import Array, read_golden

KIND = "tabular models"
PACKAGES = ("scikit-learn", "skl2onnx", "xgboost", "lightgbm", "onnxmltools", "pandas")
_WORKER = Path(__file__).with_name("tables_worker.py")


def samples(scratch: Path) -> list[Sample]:
    """All that the converters could write; the venv and the models are made if they are missing."""
    folder = scratch / "tables"
    if not (folder / "index.json").exists():
        python = venvs.python("tables", PACKAGES)
        subprocess.run([str(python), str(_WORKER), str(folder)], check=True)
    return [
        Sample(KIND, entry["name"], partial(_give, folder / entry["file"]))
        for entry in json.loads((folder / "index.json").read_text())
        if "file" in entry
    ]


def versions() -> list[str]:
    """The packages that trained and converted them."""
    wanted = {f"{name}==" for name in PACKAGES}
    found = venvs.versions("tables", PACKAGES)
    return [line for line in found if line.lower().startswith(tuple(wanted))]


def _give(path: Path, folder: Path) -> Given:  # noqa: ARG001  as all samples
    (golden,) = read_golden(path.with_suffix(".npz"))
    model = path.with_suffix(".onnx")
    inputs = {name: _texts(array) for name, array in golden.inputs.items()}
    own = reference.outputs(model, inputs)  # has the types that the converter has chosen
    outputs = {
        name: _texts(array).astype(own[name].dtype) if name in own else _texts(array)
        for name, array in golden.outputs.items()
    }
    return Given(str(model), [Case(inputs, outputs)], rtol=1e-3, atol=1e-4)


def _texts(array: Array) -> Array:
    return array.astype(object) if array.dtype.kind == "U" else array
