"""proof.indices: the range of inputs that index a table, stated only where it is certain."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from marship.contract import Contract
from marship.errors import InvalidInputError
from marship.proof import graph
from marship.proof.cases import draw_random
from marship.proof.indices import IndexRanges, index_ranges
from marship.serving.model.batch import validate
from onnx_zoo import Builder

pytestmark = pytest.mark.usefixtures("torchlib_read_once")

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
    "ids of the first row alone": lambda b: b.op(
        "Gather", table(b), b.op("Slice", "ids", np.array([0]), np.array([1]), np.array([0]))
    ),
    "a column behind a shape": lambda b: b.op(
        "Gather",
        table(b),
        b.op("Gather", b.op("Reshape", "ids", np.array([-1, 2])), np.array(0), axis=1),
    ),
    "a column clipped": lambda b: b.op(
        "Gather", table(b), b.op("Clip", column(b, 0), np.array(0), np.array(9))
    ),
    "ids cut to a byte": lambda b: b.op(
        "Gather",
        table(b),
        b.op("Cast", b.op("Cast", "ids", to=TensorProto.UINT8), to=TensorProto.INT32),
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
    assert index_ranges(model(lookup)).whole == {"ids": expected}


@pytest.mark.parametrize("name", UNSTATED)
def test_no_range_is_stated_where_other_values_may_pass(name: str) -> None:
    """A value that the model takes must never be refused."""
    assert index_ranges(model(UNSTATED[name])) == IndexRanges({}, {})


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


def exported(module: nn.Module, name: str, example: torch.Tensor, folder: Path) -> Path:
    """A module of one input as torch.onnx.export writes it, with a free batch."""
    torch.onnx.export(
        module.eval(),
        (example,),
        folder / "model.onnx",
        input_names=[name],
        dynamic_shapes={name: {0: "batch"}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return folder / "model.onnx"


@pytest.mark.slow
def test_an_exported_embedding_has_its_range(tmp_path: Path) -> None:
    """What torch.onnx.export writes."""
    path = exported(Words(), "ids", torch.zeros((2, 5), dtype=torch.int64), tmp_path)
    assert graph.contract_of(path).inputs[0].value_range == (0, ROWS - 1)


def test_a_table_outside_of_the_file_has_its_size(tmp_path: Path) -> None:
    """Nothing of it is read."""
    path = tmp_path / "model.onnx"
    whole = model(lambda b: b.op("Gather", table(b), "ids"))
    onnx.save(whole, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert graph.contract_of(path).inputs[0].value_range == (0, ROWS - 1)


def column(b: Builder, place: int) -> str:
    """One column of the ids."""
    return b.op("Gather", "ids", np.array(place), axis=1)


def whole_ids(b: Builder) -> str:
    """The ids, cast to int64."""
    return b.op("Cast", "ids", to=TensorProto.INT64)


def cut_twice(b: Builder) -> str:
    """The second of the last three columns."""
    part = b.op("Slice", "ids", np.array([1]), np.array([2**63 - 1]), np.array([1]))
    return b.op("Gather", table(b), b.op("Gather", part, np.array(1), axis=1))


def split(b: Builder) -> str:
    """Two halves, each with a table of its own."""
    first = b.op("Slice", "ids", np.array([0, 0]), np.array([2**31 - 1, 2]), np.array([0, 1]))
    last = b.op("Slice", "ids", np.array([-2]), np.array([9]), np.array([-1]), np.array([1]))
    one, other = b.op("Gather", table(b), first), b.op("Gather", table(b, 9), last)
    return b.op("Add", one, other)


def all_and_one(b: Builder) -> str:
    """All in one table, and the last in a smaller one too."""
    one = b.op("ReduceSum", b.op("Gather", table(b), "ids"), np.array([1]), keepdims=0)
    return b.op("Add", one, b.op("Gather", table(b, 5), column(b, -1)))


def counted_from_one(b: Builder) -> str:
    """One column, whose first id is 1."""
    ids = b.op("Cast", column(b, 1), to=TensorProto.INT64)
    return b.op("Gather", table(b), b.op("Sub", ids, np.array(1)))


COLUMNS: dict[str, tuple[Lookup, dict[int, tuple[int, int]]]] = {
    "one column": (lambda b: b.op("Gather", table(b), column(b, 2)), {2: (0, 19)}),
    "several columns": (
        lambda b: b.op("Gather", table(b), b.op("Gather", "ids", np.array([0, -1]), axis=-1)),
        {0: (0, 19), 3: (0, 19)},
    ),
    "every other column": (
        lambda b: b.op("Gather", table(b), b.op(
            "Slice", "ids", np.array([1]), np.array([4]), np.array([1]), np.array([2]))),
        {1: (0, 19), 3: (0, 19)},
    ),
    "a column of a part": (cut_twice, {2: (0, 19)}),
    "two halves": (split, {0: (0, 19), 1: (0, 19), 2: (0, 8), 3: (0, 8)}),
    "a column counted from one": (counted_from_one, {1: (1, 20)}),
    "columns one table behind the other": (
        lambda b: b.op("Gather", table(b), b.op("Add", whole_ids(b), np.array([0, 3, 6, 9]))),
        {0: (0, 19), 1: (-3, 16), 2: (-6, 13), 3: (-9, 10)},
    ),
    "columns less numbers of their own, then one of them": (
        lambda b: b.op("Gather", table(b), b.op(
            "Gather", b.op("Sub", whole_ids(b), np.array([[0, 3, 6, 9]])), np.array(2), axis=1)),
        {2: (6, 25)},
    ),
    "columns from the last to the first": (
        lambda b: b.op("Gather", table(b), b.op("Gather", b.op(
            "Slice", "ids", np.array([-1]), np.array([-(2**63)]), np.array([1]), np.array([-1])),
            np.array(0), axis=1)),
        {3: (0, 19)},
    ),
    "all, and one in a smaller table": (all_and_one, {3: (0, 4)}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT])
@pytest.mark.parametrize("name", COLUMNS)
def test_the_range_of_each_column_is_found(name: str, dtype: int, tmp_path: Path) -> None:
    """Floats are indices once they are cast; what lies outside is refused, what lies inside not."""
    lookup, expected = COLUMNS[name]
    path = tmp_path / "model.onnx"
    onnx.save(cast_first(model(lookup, dtype)) if dtype == TensorProto.FLOAT else
              model(lookup, dtype), path)  # fmt: skip
    contract = graph.contract_of(path)
    (spec,) = contract.inputs
    assert {c.place: (c.low, c.high) for c in spec.column_ranges} == expected
    assert Contract.from_json(contract.to_json()) == contract
    drawn = draw_random(contract, None, {"n": 9}, seed=1).inputs["ids"]
    session = onnxruntime.InferenceSession(path)
    for place, (low, high) in expected.items():
        assert (drawn[:, place].min(), drawn[:, place].max()) == (low, high)
        for value, is_inside in ((low, True), (high, True), (low - 1, False), (high + 1, False)):
            sent = {"ids": drawn.copy()}
            sent["ids"][4, place] = value
            if is_inside:
                validate(sent, contract)
                session.run(None, sent)
            else:
                with pytest.raises(InvalidInputError, match=rf"ids.* got {value}"):
                    validate(sent, contract)


def cast_first(whole: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, which casts its input before all else."""
    for node in whole.graph.node:
        for i, name in enumerate(node.input):
            if name == "ids":
                node.input[i] = "whole"
    cast = helper.make_node("Cast", ["ids"], ["whole"], to=TensorProto.INT64)
    whole.graph.node.insert(0, cast)
    return whole


@pytest.mark.parametrize("value", [-0.5, 19.5])
def test_a_float_is_cut_to_an_index(value: float, tmp_path: Path) -> None:
    """As Cast does; NaN indexes nothing, even where a model takes it elsewhere."""
    path = tmp_path / "model.onnx"
    onnx.save(cast_first(model(COLUMNS["one column"][0], TensorProto.FLOAT)), path)
    contract = graph.contract_of(path)
    sent = np.full((2, 4), value, np.float32)
    validate({"ids": sent}, contract)
    onnx.save(cast_first(model(counted_from_one, TensorProto.FLOAT)), path)
    with pytest.raises(InvalidInputError, match=r"from 1 to 20, got 0\.5"):
        validate({"ids": np.full((2, 4), 0.5, np.float32)}, graph.contract_of(path))
    sent[:, 1] = np.nan
    validate({"ids": sent}, contract, allow_non_finite=True)
    sent[:, 2] = np.nan
    with pytest.raises(InvalidInputError, match=r"ids\[:, 2\] must hold values from 0 to 19"):
        validate({"ids": sent}, contract, allow_non_finite=True)


OLD_CUTS: dict[str, tuple[onnx.NodeProto, dict[int, tuple[int, int]]]] = {
    "Slice of a column": (
        helper.make_node("Slice", ["ids"], ["part"], axes=[1], starts=[2], ends=[3]),
        {2: (0, 19)},
    ),
    "Slice without axes": (
        helper.make_node("Slice", ["ids"], ["part"], starts=[0, -1], ends=[2**31 - 1, 4]),
        {3: (0, 19)},
    ),
    "Split into uneven parts": (
        helper.make_node("Split", ["ids"], ["part", "rest"], axis=1, split=[1, 3]),
        {0: (0, 19)},
    ),
    "Split into even parts": (
        helper.make_node("Split", ["ids"], ["rest", "part"], axis=1),
        {2: (0, 19), 3: (0, 19)},
    ),
}


@pytest.mark.parametrize("name", OLD_CUTS)
def test_cuts_that_stand_in_attributes_are_read(name: str) -> None:
    """As Slice before opset 10 and Split before opset 13 state them."""
    node, expected = OLD_CUTS[name]
    whole = model(lambda b: b.op("Gather", table(b), "part"))
    whole.graph.node.insert(0, node)
    whole.opset_import[0].version = 9
    onnxruntime.InferenceSession(whole.SerializeToString())
    (found,) = index_ranges(whole).columns.values()
    assert {c.place: (c.low, c.high) for c in found} == expected


@pytest.mark.parametrize("rounding", ["Round", "Floor", "Ceil"])
def test_a_rounded_float_is_an_index(rounding: str) -> None:
    """What lies beyond the table in any case is refused; the model decides on fractions."""
    whole = cast_first(model(COLUMNS["one column"][0], TensorProto.FLOAT))
    whole.graph.node[0].input[0] = "rounded"
    whole.graph.node.insert(0, helper.make_node(rounding, ["ids"], ["rounded"]))
    (found,) = index_ranges(whole).columns["ids"]
    assert (found.place, found.low, found.high) == (2, 0, 19)


class Tabular(nn.Module):
    """Categories in the columns of one table of floats, as tabular models take them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (7, 30, 4)
        self.tables = nn.ModuleList(nn.Embedding(size, 2) for size in self.sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of x, float32, shape (batch, 5): three categories, two numbers."""
        looked_up = [table(x[:, i].long()) for i, table in enumerate(self.tables)]
        return torch.cat([*looked_up, x[:, 3:]], dim=1).sum(dim=1)


@pytest.mark.slow
def test_an_exported_tabular_model_has_the_ranges_of_its_columns(tmp_path: Path) -> None:
    """What torch.onnx.export writes of `x[:, i].long()`."""
    path = exported(Tabular(), "x", torch.zeros((2, 5)), tmp_path)
    found = graph.contract_of(path).inputs[0].column_ranges
    assert [(c.axis, c.place, c.low, c.high) for c in found] == [
        (1, 0, 0, 6),
        (1, 1, 0, 29),
        (1, 2, 0, 3),
    ]


@pytest.mark.parametrize(
    ("operator", "lookups", "low"),
    [("Gather", "request", -4), ("GatherElements", "request", -4), ("Gather", "file", 0)],
)
def test_negative_indices_count_from_the_end_of_a_request(
    operator: str, lookups: str, low: int
) -> None:
    """A client that sends the table may mean its last row; into a table of the file -1 is wrong."""
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, [2, 3])]
    node = helper.make_node(operator, ["table", "ids"], ["y"])
    stored = []
    if lookups == "request":
        inputs.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [4, 3]))
    else:
        stored = [onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "table")]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "g", inputs, [y], stored))
    assert index_ranges(model).whole == {"ids": (low, 3)}
