"""Values that a model refuses are the client's error, whatever operator refuses them.

Each model is proven as it is, and asked in one batch: requests that it takes around one that it
does not. The latter is a 4xx that tells no internals, and its neighbours are answered.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from marship.contract import CONTRACT_FILE, GOLDEN_FILE, write_golden
from marship.proof import onnx_proof
from marship.serving.message import JSON_TYPE, Request
from marship.serving.service import Placement, Service
from odd_models import FLOAT, INT64, Shape, graph_of

pytestmark = pytest.mark.slow

Stated = dict[str, tuple[int, Shape]]
TABLE = np.arange(20, dtype=np.float32).reshape(10, 2)
HUGE = 1 << 46
"""Values that no machine has the memory for."""


@dataclass(frozen=True)
class Odd:
    """A model, a request that it takes, and some that it refuses.

    Attributes:
        told: What the message says; a bound where there is one.
        golden: Real where drawn values of an input do not fit those of another.
    """

    nodes: list[NodeProto]
    inputs: Stated
    good: dict[str, Any]
    bad: list[dict[str, Any]]
    told: str = "got some that it refuses"
    outputs: Stated = field(default_factory=lambda: {"y": (FLOAT, [None, None])})
    constants: dict[str, Any] = field(default_factory=dict)
    golden: str = "synthetic"


def node(kind: str, *inputs: str, **attributes: Any) -> NodeProto:
    """A node whose output is y."""
    return helper.make_node(kind, list(inputs), ["y"], name=f"secret_{kind}", **attributes)


IDS: Stated = {"ids": (INT64, ["n", "length"])}
ROWS: Stated = {"x": (FLOAT, ["n", "length"])}
PLANES: Stated = {"x": (FLOAT, ["n", 1, "h", "w"])}
AND_K: Stated = {**ROWS, "k": (INT64, [1])}
PLANE_OUT: Stated = {"y": (FLOAT, ["n", 1, "a", "b"])}
CUBE_OUT: Stated = {"y": (FLOAT, [None, None, None])}
ROW = {"x": [[1, 2, 3, 4]]}

MODELS = {
    "ids beyond a table": Odd(
        [node("Gather", "table", "ids")], IDS, {"ids": [[3, 9]]},
        [{"ids": [[10]]}, {"ids": [[-1]]}, {"ids": [[1 << 40]]}],
        "ids must hold values from 0 to 9", CUBE_OUT, {"table": TABLE},
    ),
    "an embedding of negative ids that are cut": Odd(
        [helper.make_node("Max", ["ids", "zero"], ["cut"]), node("Gather", "table", "cut")],
        IDS, {"ids": [[3, -9]]}, [{"ids": [[10]]}], outputs=CUBE_OUT,
        constants={"table": TABLE, "zero": np.array(0)},
    ),
    "indices into a table's columns": Odd(
        [node("GatherElements", "table", "ids", axis=0)], {"ids": (INT64, [10, 2])},
        {"ids": [[3, 9]] * 10}, [{"ids": [[3, 10]] * 10}, {"ids": [[3, -1]] * 10}],
        "ids must hold values from 0 to 9", constants={"table": TABLE},
    ),
    "places in a table": Odd(
        [node("GatherND", "table", "ids")], {"ids": (INT64, ["n", 2])}, {"ids": [[9, 1]]},
        [{"ids": [[10, 0]]}, {"ids": [[0, 2]]}, {"ids": [[0, -1]]}],
        r"ids\[:, [01]\] must hold values from 0 to [91]", {"y": (FLOAT, ["n"])},
        {"table": TABLE},
    ),
    "places to write to": Odd(
        [node("ScatterND", "table", "ids", "new")], {"ids": (INT64, [1, 1])}, {"ids": [[9]]},
        [{"ids": [[10]]}, {"ids": [[-11]]}], r"ids\[:, 0\] must hold values from 0 to 9",
        constants={"table": TABLE, "new": np.ones((1, 2), np.float32)},
    ),
    "elements to write to": Odd(
        [node("ScatterElements", "table", "ids", "new", axis=0)], {"ids": (INT64, [1, 2])},
        {"ids": [[9, 0]]}, [{"ids": [[10, 0]]}], "ids must hold values from 0 to 9",
        constants={"table": TABLE, "new": np.ones((1, 2), np.float32)},
    ),
    "indices into another input": Odd(
        [node("Gather", "x", "k", axis=1)], AND_K, {**ROW, "k": [3]},
        [{**ROW, "k": [4]}, {**ROW, "k": [-5]}],
    ),
    "classes of a depth that is an input": Odd(
        [node("OneHot", "k", "depth", "values")], {"k": (INT64, ["n"]), "depth": (INT64, [])},
        {"k": [1], "depth": 3}, [{"k": [1], "depth": -1}, {"k": [1], "depth": HUGE}],
        "got (some that it refuses|one that does)",
        constants={"values": np.array([0, 1], np.float32)},
    ),
    "a row too short for a kernel": Odd(
        [node("Conv", "x", "w")], {"x": (FLOAT, ["n", 1, "length"])}, {"x": [[[1, 2, 3, 4, 5]]]},
        [{"x": [[[1, 2]]]}], "axis length of x must be at least 3, got 2",
        {"y": (FLOAT, ["n", 1, "frames"])}, {"w": np.ones((1, 1, 3), np.float32)},
    ),
    "a picture too small to be pooled": Odd(
        [node("MaxPool", "x", kernel_shape=[5, 5])], PLANES, {"x": np.ones((1, 1, 6, 9)).tolist()},
        [{"x": np.ones((1, 1, 4, 9)).tolist()}], "axis h of x must be at least 5, got 4", PLANE_OUT,
    ),
    "a row that is folded": Odd(
        [node("Reshape", "x", "shape")], ROWS, {"x": [[1] * 12]}, [{"x": [[1] * 10]}],
        "axis length of x must be at least 4 and a multiple of 4, got 10", CUBE_OUT,
        {"shape": np.array([0, -1, 4])},
    ),
    "a text longer than the positions": Odd(
        [
            helper.make_node("Shape", ["x"], ["size"], start=1, end=2),
            helper.make_node("Slice", ["positions", "zero", "size", "zero"], ["places"]),
            node("Add", "x", "places"),
        ],
        ROWS, ROW, [{"x": [[1] * 33]}], "axis length of x must be from 1 to 32, got 33",
        constants={"positions": np.ones(32, np.float32), "zero": np.array([0])},
    ),
    "parts that do not add up": Odd(
        [helper.make_node("Split", ["x", "k"], ["y", "z"], axis=1)],
        {**ROWS, "k": (INT64, [2])}, {**ROW, "k": [1, 3]}, [{**ROW, "k": [1, 2]}],
        outputs={"y": (FLOAT, ["n", "a"]), "z": (FLOAT, ["n", "b"])}, golden="real",
    ),
    "more best values than there are": Odd(
        [helper.make_node("TopK", ["x", "k"], ["y", "places"])], AND_K, {**ROW, "k": [2]},
        [{**ROW, "k": [5]}, {**ROW, "k": [-1]}, {**ROW, "k": [1 << 20]}],
    ),
    "a range without an end": Odd(
        [node("Range", "start", "end", "step")],
        {name: (INT64, []) for name in ("start", "end", "step")},
        {"start": 0, "end": 5, "step": 1},
        [{"start": 0, "end": 5, "step": 0}, {"start": 0, "end": HUGE, "step": 1}],
        "got (some that it refuses|one that does)", {"y": (INT64, ["count"])},
    ),
    "too many copies": Odd(
        [node("Tile", "x", "k")], {**ROWS, "k": (INT64, [2])}, {**ROW, "k": [1, 2]},
        [{**ROW, "k": [1, -1]}, {**ROW, "k": [1, HUGE]}],
        "got (some that it refuses|one that does)",
    ),
    "a shape of constants": Odd(
        [node("ConstantOfShape", "k")], {"k": (INT64, [2])}, {"k": [2, 3]},
        [{"k": [2, -3]}, {"k": [1, HUGE]}, {"k": [1 << 40, 1 << 40]}],
        "got (some that it refuses|one that does)",
    ),
    "a shape to expand to": Odd(
        [node("Expand", "x", "k")], {**ROWS, "k": (INT64, [2])}, {**ROW, "k": [3, 4]},
        [{**ROW, "k": [1, 3]}, {**ROW, "k": [HUGE, 4]}],
        "got (some that it refuses|one that does)",
    ),
    "a shape to fold to": Odd(
        [node("Reshape", "x", "k")], {**ROWS, "k": (INT64, [2])}, {**ROW, "k": [2, 2]},
        [{**ROW, "k": [3, 2]}, {**ROW, "k": [-1, -1]}, {**ROW, "k": [0, HUGE]}],
    ),
    "sizes to resize to": Odd(
        [node("Resize", "x", "", "", "k", mode="nearest")], {**PLANES, "k": (INT64, [4])},
        {"x": [[[[1, 2]]]], "k": [1, 1, 2, 4]},
        [{"x": [[[[1, 2]]]], "k": [1, 1, HUGE, 4]}, {"x": [[[[1, 2]]]], "k": [1, 1, -2, 4]}],
        "got (some that it refuses|one that does)", PLANE_OUT,
    ),
    "margins": Odd(
        [node("Pad", "x", "k")], {**ROWS, "k": (INT64, [4])}, {**ROW, "k": [0, 1, 0, 1]},
        [{**ROW, "k": [0, HUGE, 0, 0]}, {**ROW, "k": [0, -9, 0, 0]}],
        "got (some that it refuses|one that does)",
    ),
    "an axis that is an input": Odd(
        [node("CumSum", "x", "axis")], {**ROWS, "axis": (INT64, [])}, {**ROW, "axis": 1},
        [{**ROW, "axis": 2}, {**ROW, "axis": -3}], outputs={"y": (FLOAT, ["n", "length"])},
    ),
    "sequences longer than the row": Odd(
        [node("ReverseSequence", "x", "k", batch_axis=0, time_axis=1)],
        {**ROWS, "k": (INT64, ["n"])}, {**ROW, "k": [3]}, [{**ROW, "k": [5]}, {**ROW, "k": [-1]}],
        outputs={"y": (FLOAT, ["n", "length"])},
    ),
    "a mask of another length": Odd(
        [node("Where", "k", "x", "zero")], {**ROWS, "k": (TensorProto.BOOL, ["m"])},
        {**ROW, "k": [True, False] * 2}, [{**ROW, "k": [True] * 9}],
        constants={"zero": np.float32(0)},
    ),
}  # fmt: skip


def loaded(odd: Odd, folder: Path) -> Service:
    """The model, proven with its example as `package` does, and loaded as a worker does."""
    source = graph_of(folder / "model.onnx", odd.nodes, odd.inputs, odd.outputs, odd.constants)
    (folder / "example.json").write_text(json.dumps(odd.good))
    example = folder / "example.json"
    wishes = onnx_proof.Wishes(golden=odd.golden, proof_seconds=1, example=example)
    proof = onnx_proof._prove(source, folder, wishes)
    (folder / CONTRACT_FILE).write_text(proof.contract.to_json())
    write_golden(folder / GOLDEN_FILE, proof.cases)
    service = Service()
    service.load(Placement(folder=folder, name="odd"))
    return service


@pytest.mark.parametrize("name", MODELS)
def test_a_refused_value_is_the_clients(name: str, tmp_path: Path) -> None:
    """400 or 413 with the bound where there is one, and no word of operators or ONNX Runtime."""
    odd = MODELS[name]
    service = loaded(odd, tmp_path)
    bodies = [odd.good, *(one for bad in odd.bad for one in (bad, odd.good))]
    requests = [Request(json.dumps(body).encode(), JSON_TYPE) for body in bodies]
    (alone, *replies), _ = service.reply(requests)
    assert alone.status == 200, alone.body
    for reply, body in zip(replies, bodies[1:], strict=True):
        if body is odd.good:
            assert (reply.status, reply.body) == (200, alone.body)
            continue
        assert reply.status in (400, 413), (body, reply.body)
        assert re.search(odd.told, json.loads(reply.body)["message"]), reply.body
        assert not re.search(rb"secret_|onnx|\.cc|node|Status", reply.body, re.IGNORECASE)
