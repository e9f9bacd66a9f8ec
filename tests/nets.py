"""Modules of PyTorch in files of their own, exported and compared."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from marship.contract import Contract
from marship.exporting import capture
from marship.exporting.step import ExportSettings, export_model
from marship.fit.recipe import resolve

Arrays = dict[str, np.ndarray]
HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"
QUICK = {"proof_seconds": 1.0, "seed": 0}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def written(folder: Path, code: str) -> str:
    """A reference to `build` of a file with this code."""
    (folder / "net.py").write_text(HEAD + textwrap.dedent(code))
    return f"{folder / 'net.py'}:build"


def module(folder: Path, body: str, init: str = "pass", inputs: str = "x") -> str:
    """A reference to a module with these layers and this forward."""
    return written(
        folder,
        f"""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                {init}

            def forward(self, {inputs}):
                {body}


        def build():
            torch.manual_seed(0)
            return Net()
        """,
    )


def exported(folder: Path, build: str, settings: dict[str, Any], **example: np.ndarray) -> Contract:
    """The contract of an export into `folder / "run"`."""
    np.savez(folder / "example.npz", **example)
    chosen = ExportSettings(**QUICK, **settings)
    example_file = folder / "example.npz"
    return export_model(build, example=example_file, settings=chosen, out=folder / "run").contract


def served(folder: Path, inputs: Arrays) -> list[np.ndarray]:
    """What ONNX Runtime makes of the exported file."""
    return onnxruntime.InferenceSession(folder / "run" / "model.onnx").run(None, inputs)


def held(folder: Path, build: str, inputs: Arrays) -> None:
    """Check outputs against those of the module in PyTorch."""
    model = resolve(build)().eval()
    with torch.no_grad():
        returned = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    want = [tensor for _, tensor in capture.named_tensors(returned)]
    for one, other in zip(served(folder, inputs), want, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-4, rtol=1e-3)
