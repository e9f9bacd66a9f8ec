"""Files that hold a model with its code: programs of torch.export, and TorchScript.

PyTorch opens neither without running what the file holds: torch.export.load unpickles parts of it
and evaluates its expressions, torch.jit.load runs its code. So they are exported on request only,
in a process of its own, which a crash ends alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marship import console, errors
from marship.errors import MarshipError, ModelError, UsageError
from marship.settings import as_dict, from_dict

if TYPE_CHECKING:  # torch takes a second to import, and --help does not need it
    from torch import nn

    from marship.exporting.settings import ExportSettings

_START = "import sys; from marship.exporting import programs; programs.main()"
REASON = 400
"""Characters of an error's reason."""
_LOADS_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json")


def check(path: Path, *, is_trusted: bool, has_weights: bool) -> str:
    """Check that a file holds a model that can be opened and may be.

    Returns:
        What it is, in words.

    Raises:
        UsageError: It is another file, or nobody said that it is trusted; with what to type.
    """
    from marship.fit.torchfile import model_kind

    kind = model_kind(path)
    if kind is None:
        raise UsageError(f"{path} must hold a model with its code, got {_other(path)}")
    if has_weights:
        raise UsageError(f"weights must be left out for {path}, which has its own.")
    if not is_trusted:
        raise UsageError(
            f"{path} must come from somebody you trust, got {kind}: PyTorch runs what it holds, "
            "with your permissions. Add --trust-code if you made it, or know who did."
        )
    return kind


def _other(path: Path) -> str:
    """What a file is that no model can be opened from, and what to type."""
    if path.suffix == ".onnx":
        return f"an ONNX file, which needs no export: marship package {path}"
    if path.suffix == ".py":
        return f"Python code. Name the function that builds the model: marship export {path}:build"
    if path.suffix in _LOADS_WEIGHTS:
        return (
            "weights alone. Name the function that builds the model: "
            f"marship export model.py:build --weights {path} --example example.npz"
        )
    return f"a {path.suffix or 'file'} that torch.export and TorchScript do not write."


def export_apart(
    path: Path, *, example: Path, out: Path | None, settings: "ExportSettings"
) -> dict[str, Any]:
    """Export the model of a file in a process of its own.

    Returns:
        `run_dir`, which holds the result, and `fresh`.

    Raises:
        ModelError: The process crashed.
        MarshipError: The export failed; the error that the process reported.
    """
    task = {
        "path": str(path),
        "example": str(example),
        "out": str(out) if out else None,
        "settings": as_dict(settings),
    }
    # -P: import no modules from the current folder, which the file may lie in
    done = subprocess.run(
        [sys.executable, "-P", "-c", _START],
        input=json.dumps(task).encode(),
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise ModelError(
            f"{path} must be opened by PyTorch, got exit code {done.returncode} of the process "
            "that opened it. Export the model from its Python code."
        ) from error
    if "code" in result:
        raise next(kind for kind in errors.kinds() if kind.code == result["code"])(
            result["message"]
        )
    return result


def main() -> None:
    """Entry point of the process: writes its result, or an error, to standard output."""
    from marship.exporting import step
    from marship.exporting.settings import ExportSettings

    task = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "wb") as target, console.as_notes(True):
        os.dup2(2, 1)  # keeps prints of libraries and of the model out of the result
        try:
            settings = from_dict(ExportSettings, task["settings"], "the command line")
            out = Path(task["out"]) if task["out"] else None
            done = step.export_model(
                task["path"], example=task["example"], settings=settings, out=out
            )
            result = {"run_dir": str(done.run_dir), "fresh": done.fresh}
        except MarshipError as error:
            result = {"code": error.code, "message": str(error)}
        except Exception as error:  # torch raises errors of many unrelated types
            reason = next(iter(str(error).strip().splitlines()), "no reason")[:REASON]
            message = (
                f"{task['path']} must be exportable, got {type(error).__name__}: {reason}. "
                "Export the model from its Python code."
            )
            result = {"code": ModelError.code, "message": message}
        target.write(json.dumps(result).encode())


def opened(path: Path) -> "nn.Module":
    """The model of a file that is trusted; runs what the file holds.

    Raises:
        UsageError: PyTorch cannot open it.
    """
    from marship.exporting import modules
    from marship.fit.torchfile import PROGRAM, model_kind

    try:
        return modules.Program(path) if model_kind(path) == PROGRAM else modules.Script(path)
    except Exception as error:  # torch raises errors of many unrelated types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(
            f"{path} must be opened by this PyTorch, got {type(error).__name__}: {reason}. "
            "Save it again with the version that is installed here."
        ) from error
