"""One small model in versions that give different answers, and two that must never answer."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from marship import Client
from marship.contract import GOLDEN_FILE, GoldenCase, read_golden, write_golden
from marship.errors import NotFoundError
from marship.packaging.step import PackageSettings, package
from models import write_model

OFF_HANDLER = Path(__file__).parent / "server" / "onnx_handlers" / "off_handler.py"
ROW = [[1, 2, 3]]
ANSWERS = {"1": [[16, 22]], "2": [[32, 44]]}
"""Of version 1, and of version 2, whose weights are twice as large."""


def write_versions(store: Path, folder: Path) -> None:
    """Write `lin` into a model store: lin-1, lin-2, and wrong and broken, which must not take over.

    Workers of `wrong` load and answer otherwise than recorded; those of `broken` refuse to load.
    """
    for scale, version in ((1, "1"), (2, "2")):
        add(store, linear(folder / f"{scale}.onnx", scale), version)
    double = folder / "2.onnx"
    add(store, double, "3", file="wrong", handler=OFF_HANDLER)
    add(store, double, "4", file="broken")
    spoil_golden(store / "broken.mar")


def linear(path: Path, scale: int) -> Path:
    """Write `output = scale * input @ W`: float32 (batch, 3) to (batch, 2)."""
    weights = scale * np.arange(6, dtype=np.float32).reshape(3, 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "W"], ["output"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weights, "W")],
    )
    return write_model(path, graph)


def add(
    store: Path, model: Path, version: str, *, file: str = "", handler: Path | None = None
) -> None:
    """Package a version of `lin` into a file of its own."""
    settings = PackageSettings(model_store=store, name="lin", version=version, handler=handler)
    shutil.move(package(model, settings), store / f"{file or f'lin-{version}'}.mar")


def spoil_golden(archive: Path) -> None:
    """Let the reference have given other outputs: a worker refuses to load then."""
    kept = archive.with_suffix(".kept")
    archive.rename(kept)
    with zipfile.ZipFile(kept) as old, zipfile.ZipFile(archive, "w") as new:
        for name in old.namelist():
            if name != GOLDEN_FILE:
                new.writestr(name, old.read(name))
        with old.open(GOLDEN_FILE) as source, new.open(GOLDEN_FILE, "w") as target:
            cases = read_golden(source)
            write_golden(
                target,
                [
                    GoldenCase(case.inputs, {name: a + 1 for name, a in case.outputs.items()})
                    for case in cases
                ],
            )
    kept.unlink()


def remove(client: Client, name: str) -> None:
    """Unregister all versions."""
    try:
        default = client.describe(name)[0].version
    except NotFoundError:
        return
    versions = {status.version for status in client.describe(name, "all")}
    for version in [*(versions - {default}), default]:
        client.unregister(name, version)


def versions(client: Client, name: str) -> list[str]:
    """The default version, and then all."""
    for model in client.models():
        if model.name == name:
            return [model.default_version, *(status.version for status in model.versions)]
    return []
