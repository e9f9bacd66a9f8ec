"""The networks of training/digits.py, trained and exported, and their weights for peers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

REPOSITORY = Path(__file__).parents[1]


def exported(name: str, activation: str, folder: Path) -> Path:
    """The run folder of a network, mlp or cnn, trained and exported there unless it is."""
    run = folder / f"{name}-{activation}"
    if not (run / "model.onnx").is_file():
        recipe = ["training/digits.py", "--activation", activation, "--network", name]
        export = ["-m", "marship", "export", str(run)]
        for words in ([*recipe, "--run-dir", str(run)], export):
            subprocess.run(
                [sys.executable, *words], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL
            )
    return run


def layers(run: Path) -> dict[str, np.ndarray]:
    """The model's weights in order, with a division of the input folded into the first.

    `0.weight`, `0.bias`, and `0.stride` and `0.padding` of a convolution, `1.weight` and so on: the
    export has folded batch norm into them.
    """
    graph = onnx.load(run / "model.onnx").graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    found: dict[str, np.ndarray] = {}
    by, count = np.float32(1), 0
    for node in graph.node:
        if node.op_type == "Div":
            by = arrays[node.input[1]]
        if node.op_type not in ("Gemm", "Conv"):
            continue
        weight, bias = (arrays[name] for name in node.input[1:3])
        found[f"{count}.weight"], found[f"{count}.bias"] = (weight / by).astype(np.float32), bias
        by = np.float32(1)
        values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Conv":
            found[f"{count}.stride"] = np.array(values["strides"][0])
            found[f"{count}.padding"] = np.array(values["pads"][0])
        count += 1
    return found
