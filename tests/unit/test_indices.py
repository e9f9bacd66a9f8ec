"""marship.indices: the range of inputs that index a table, stated only where it is certain."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from marship import graph
from marship.cases import draw_random
from marship.indices import index_ranges
from onnx_zoo import Builder

ROWS = 20
Lookup = Callable[[Builder], str]


def model(lookup: Lookup, dtype: int = TensorProto.INT64) -> onnx.ModelProto:
    """A model from ids[n, 4] by some way of looking them up."""
    b = Builder(np.random.default_rng(0))
    out = b.op("ReduceSum", lookup(b), keepdims=0)
    body = helper.make_graph(
        b.nodes,
        "g",
        [helper.make_tensor_value_info("ids", dtype, ["n", 4])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, [])],
        b.constants,
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def table(b: Builder, rows: int = ROWS) -> str:
    """A table's name."""
    return b.constant(b.weights(rows, 3))


def quantized(b: Builder) -> str:
    """A table that is dequantized in every call."""
    stored = np.ones((ROWS, 3), np.int8)
    return b.op("DequantizeLinear", stored, np.array(0.1, np.float32), np.array(0, np.int8))


def two_tables(b: Builder) -> str:
    """Ids that must fit both of two tables."""
    one, other = (b.op("Gather", table(b, rows), "ids") for rows in (ROWS, 9))
    return b.op("Add", one, other)


def shaped(b: Builder) -> str:
    """Ids that are cast and shaped before they are looked up."""
    ids = b.op("Cast", "ids", to=TensorProto.INT32)
    ids = b.op("Unsqueeze", b.op("Transpose", ids, perm=[1, 0]), np.array([0]))
    return b.op("Gather", table(b), b.op("Reshape", b.op("Identity", ids), np.array([-1])))


def joined(b: Builder) -> str:
    """Ids behind a token of the model's own."""
    first = b.op("Expand", np.array([[0]]), b.op("Concat", b.batch("ids"), np.array([1]), axis=0))
    return b.op("Gather", table(b), b.op("Concat", first, "ids", axis=1))


def in_both_branches(b: Builder) -> str:
    """A branch looks ids up in one table or in a larger one."""
    names = [table(b), table(b, 50)]
    graphs = []
    for name in names:
        out = f"{name}_out"
        node = helper.make_node("Gather", [name, "ids"], [out])
        value = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        graphs.append(helper.make_graph([node], "branch", [], [value]))
    condition = b.op("Greater", b.op("Squeeze", b.batch("ids")), 3)
    return b.op("If", condition, then_branch=graphs[0], else_branch=graphs[1])


STATED: dict[str, tuple[Lookup, tuple[int, int]]] = {
    "a table": (lambda b: b.op("Gather", table(b), "ids"), (0, 19)),
    "a table along its second axis": (
        lambda b: b.op("Gather", b.constant(b.weights(3, 7)), "ids", axis=-1), (0, 6),
    ),
    "a transposed table": (
        lambda b: b.op("Gather", b.op("Transpose", b.weights(3, 7), perm=[1, 0]), "ids"), (0, 6),
    ),
    "a quantized table": (lambda b: b.op("Gather", quantized(b), "ids"), (0, 19)),
    "two tables": (two_tables, (0, 8)),
    "shaped ids": (shaped, (0, 19)),
    "ids behind a first token": (joined, (0, 19)),
    "ids counted from one": (
        lambda b: b.op("Gather", table(b), b.op("Sub", "ids", np.array(1))), (1, 20),
    ),
    "ids behind reserved ones": (
        lambda b: b.op("Gather", table(b), b.op("Add", "ids", np.array(5))), (-5, 14),
    ),
    "columns one table behind the other": (
        lambda b: b.op("Gather", table(b), b.op("Add", "ids", np.array([0, 3, 6, 9]))), (-9, 19),
    ),
    "both branches": (in_both_branches, (0, 49)),
    "elements": (
        lambda b: b.op("GatherElements", b.constant(b.weights(8, 4)), "ids", axis=0), (0, 7),
    ),
}  # fmt: skip

UNSTATED: dict[str, Lookup] = {
    "masked ids": lambda b: b.op(
        "Gather", table(b), b.op("Where", b.op("Less", "ids", 0), np.array(0), "ids")
    ),
    "clipped ids": lambda b: b.op(
        "Gather", table(b), b.op("Clip", "ids", np.array(0), np.array(9))
    ),
    "ids at least zero": lambda b: b.op("Gather", table(b), b.op("Max", "ids", np.array(0))),
    "hashed ids": lambda b: b.op("Gather", table(b), b.op("Mod", "ids", np.array(ROWS))),
    "a part of the ids": lambda b: b.op(
        "Gather", table(b), b.op("Slice", "ids", np.array([0]), np.array([2]), np.array([1]))
    ),
    "ids that are numbers": lambda b: b.op("Cast", "ids", to=TensorProto.FLOAT),
    "a table as long as the batch": lambda b: b.op(
        "Gather", b.op("Cast", "ids", to=TensorProto.FLOAT), "ids"
    ),
    "ids turned around": lambda b: b.op("Gather", table(b), b.op("Sub", np.array(19), "ids")),
}


@pytest.mark.parametrize("name", STATED)
def test_the_range_of_what_is_looked_up_is_found(name: str) -> None:
    """From 0 to the table's last row, less what is added to the ids."""
    lookup, expected = STATED[name]
    assert index_ranges(model(lookup)) == {"ids": expected}


@pytest.mark.parametrize("name", UNSTATED)
def test_no_range_is_stated_where_other_values_may_pass(name: str) -> None:
    """A value that the model takes must never be refused."""
    assert index_ranges(model(UNSTATED[name])) == {}


@pytest.mark.parametrize("name", STATED)
def test_ids_are_drawn_over_the_whole_table(name: str, tmp_path: Path) -> None:
    """Both ends are among them."""
    lookup, (low, high) = STATED[name]
    path = tmp_path / "model.onnx"
    onnx.save(model(lookup), path)
    contract = graph.contract_of(path)
    drawn = draw_random(contract, None, {"n": 7}, seed=1).inputs["ids"]
    assert (drawn.min(), drawn.max()) == (low, high)


class Words(nn.Module):
    """An embedding, as PyTorch exports it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(ROWS, 4)
        self.places = nn.Embedding(6, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Of ids, shape (batch, length)."""
        return self.words(ids) + self.places(torch.arange(ids.shape[1]))


def test_an_exported_embedding_has_its_range(tmp_path: Path) -> None:
    """What torch.onnx.export writes."""
    path = tmp_path / "words.onnx"
    ids = torch.zeros((2, 5), dtype=torch.int64)
    torch.onnx.export(
        Words().eval(),
        (ids,),
        path,
        input_names=["ids"],
        dynamic_shapes={"ids": {0: "batch"}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert graph.contract_of(path).inputs[0].value_range == (0, ROWS - 1)


def test_a_table_outside_of_the_file_has_its_size(tmp_path: Path) -> None:
    """Nothing of it is read."""
    path = tmp_path / "model.onnx"
    whole = model(lambda b: b.op("Gather", table(b), "ids"))
    onnx.save(whole, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert graph.contract_of(path).inputs[0].value_range == (0, ROWS - 1)
