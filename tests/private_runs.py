"""Run folders of small models for encrypted inputs, their archives as workers have them, clients.

The models are made with onnx.helper: what PyTorch exports is tested where exports are.
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import orjson
import yaml
from onnx import TensorProto, helper, numpy_helper

from marship import PackageSettings
from marship.contract import CONTRACT_FILE, GOLDEN_FILE, Arrays, GoldenCase, write_golden
from marship.errors import ServerError, kinds
from marship.fit.recipe import Recipe
from marship.packaging.graph import MODEL_FILE
from marship.private import step
from marship.private.segments import SegmentedGraph
from marship.proof import graph
from marship.serving.message import Request
from marship.serving.placement import Placement
from marship.serving.private.handler import EncryptedHandler
from models import write_model

INPUTS, HIDDEN, OUTPUTS = 6, 5, 3


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float32 values, smaller the more there are in a row."""
    values = np.random.default_rng(seed).normal(size=shape) / np.sqrt(max(shape[-1], 1))
    return values.astype(np.float32)


WEIGHTS = {
    "a": numbers(INPUTS, HIDDEN, seed=1),
    "b": numbers(HIDDEN, OUTPUTS, seed=2),
    "c": numbers(OUTPUTS, seed=3),
    "d": numbers(INPUTS, OUTPUTS, seed=4),
}


def node(kind: str, *inputs: str, out: str, **attributes: Any) -> onnx.NodeProto:
    """A node with one output, of the same name."""
    return helper.make_node(kind, list(inputs), [out], name=out, **attributes)


LINEAR = [node("MatMul", "x", "d", out="p"), node("Add", "p", "c", out="y")]
"""`y = x d + c`"""
SQUARE = [
    node("MatMul", "x", "a", out="h"),
    node("Mul", "h", "h", out="s"),
    node("MatMul", "s", "b", out="p"),
    node("Add", "p", "c", out="y"),
]
"""`y = (x a)^2 b + c`"""


def write(  # noqa: PLR0913  keyword-only
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Arrays = WEIGHTS,
    *,
    given: Sequence[int] = (INPUTS,),
    made: Sequence[int] = (OUTPUTS,),
    kind: int = TensorProto.FLOAT,
) -> Path:
    """A model from `x`, (batch, *given), to `y`, (batch, *made)."""
    used = {name for one in nodes for name in one.input}
    model = helper.make_graph(
        list(nodes),
        "model",
        [helper.make_tensor_value_info("x", kind, ["batch", *given])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *made])],
        [numpy_helper.from_array(array, name) for name, array in weights.items() if name in used],
    )
    return write_model(path, model)


def segmented(folder: Path, nodes: Sequence[onnx.NodeProto], **settings: Any) -> SegmentedGraph:
    """A graph as the compiler takes it."""
    path = write(folder / "model.onnx", nodes, **settings)
    given = settings.get("given", (INPUTS,))
    return SegmentedGraph.load(path, {"x": numbers(1, *given)})


def run_folder(
    folder: Path,
    nodes: Sequence[onnx.NodeProto] = SQUARE,
    golden: str = "synthetic",
    weights: Arrays = WEIGHTS,
    inputs: int = INPUTS,
) -> Path:
    """What `export` leaves: recipe, model, contract, golden cases."""
    folder.mkdir()
    Recipe(name="tiny", build="").save(folder)
    path = write(folder / MODEL_FILE, nodes, weights, given=(inputs,))
    rows = numbers(10, inputs, seed=5)
    (outputs,) = onnxruntime.InferenceSession(path).run(None, {"x": rows})
    write_golden(folder / GOLDEN_FILE, [GoldenCase({"x": rows}, {"y": outputs})])
    contract = replace(graph.contract_of(path), batch_axis="batch")
    (folder / CONTRACT_FILE).write_text(contract.to_json())
    (folder / "parity.json").write_text(json.dumps({"golden": golden}))
    return folder


def packaged(
    folder: Path, nodes: Sequence[onnx.NodeProto] = LINEAR, **settings: Any
) -> step.Packaged:
    """A run folder, compiled and packaged into `store` beside it."""
    run = run_folder(folder / "run", nodes)
    step.compile_run(run)
    return step.package(run, PackageSettings(model_store=folder / "store", **settings))


def loaded(archive: Path, folder: Path, **options: Any) -> EncryptedHandler:
    """The handler of an archive, with settings of `handler:`; extracted if it is not."""
    if not folder.exists():
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder)
    config = yaml.safe_load((folder / "model-config.yaml").read_text())
    handler = EncryptedHandler()
    config = {**config, "handler": options}
    handler.load(Placement(folder=folder, name="tiny", version="1.0", config=config))
    return handler


class InProcess:
    """Takes a client's requests to a handler, in place of HTTP.

    Attributes:
        bodies: All bodies that were sent.
        change: Changes a response's body on its way.
    """

    def __init__(self, handler: EncryptedHandler) -> None:
        self.handler = handler
        self.bodies: list[bytes] = []
        self.change: Callable[[bytes], bytes] = bytes

    def predict(
        self, name: str, inputs: bytes, *, version: str | None = None, content_type: str = ""
    ) -> Any:
        """The response as `marship.Client` gives it, or its error."""
        del name, version
        self.bodies.append(inputs)
        replies, _ = self.handler.reply([Request(body=inputs, content_type=content_type)])
        if replies[0].status != 200:
            found = orjson.loads(replies[0].body)
            classes = {kind.code: kind for kind in kinds()}
            raise classes.get(found["code"], ServerError)(found["message"])
        if replies[0].content_type == "application/json":
            return orjson.loads(replies[0].body)
        return self.change(replies[0].body)
