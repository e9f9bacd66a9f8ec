"""Rows of a call are followed through the graph: what mixes them is found whatever the values."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from marship.proof import graph, influence, operators, parity
from row_graphs import MIXING, ROW_WISE

Arrays = dict[str, np.ndarray]


def _saved(text: str, path: Path) -> Path:
    newer = {"num_outputs": 18, "string[N]": 19, "to = 17": 19}
    opset = max((version for word, version in newer.items() if word in text), default=17)
    domains = [one for one in ("local", "com.microsoft", "ai.onnx.ml") if f"{one}." in text]
    opsets = ", ".join(f'"{one}" : 1' for one in domains)
    opsets = f'"" : {opset}' + (f", {opsets}" if opsets else "")
    model = parser.parse_model(f"<ir_version: 9, opset_import: [{opsets}]>" + text)
    onnx.save(model, path)
    return path


def _requests(path: Path) -> list[Arrays]:
    """Requests of one row, of the file's own type."""
    (value,) = onnx.load(path).graph.input
    rows, *others = value.type.tensor_type.shape.dim
    shape = [rows.dim_value or 1, *(axis.dim_value or 4 for axis in others)]
    if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
        return [{"x": np.full(shape, "word", dtype=object)}] * 5
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(5)]


@pytest.mark.parametrize("text", MIXING.values(), ids=MIXING)
def test_what_mixes_rows_is_found_whatever_the_values(text: str, tmp_path: Path) -> None:
    """None of these needs a run that shows it, and the operator is named."""
    path = _saved(text, tmp_path / "model.onnx")
    assert influence.mixing(path, _requests(path))


@pytest.mark.parametrize("text", ROW_WISE.values(), ids=ROW_WISE)
def test_rows_that_only_move_are_followed(text: str, tmp_path: Path) -> None:
    """Rows that a graph moves, cuts or puts behind each other are still their own."""
    path = _saved(text, tmp_path / "model.onnx")
    assert influence.mixing(path, _requests(path)) == ()


def test_two_requests_are_enough(tmp_path: Path) -> None:
    """A bound of two rows does not hide what mixes them."""
    path = _saved(MIXING["a mean over all rows, of any size"], tmp_path / "model.onnx")
    assert influence.mixing(path, _requests(path)[:2])


def _node(kind: str, *inputs: str, out: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, [*inputs], [out], **attributes)


def _stages(generator: np.random.Generator, x: str, y: str) -> Iterator[list[onnx.NodeProto]]:
    """Operators on a tensor of three axes, of any order, that keep three axes."""
    axis = int(generator.integers(3))
    order = [int(one) for one in generator.permutation(3)]
    yield [_node("Transpose", x, out=y, perm=order)]
    yield [
        _node("ReduceMean", x, out=f"{y}m", axes=[axis], keepdims=1),
        _node("Sub", x, f"{y}m", out=y),
    ]
    yield [_node("Softmax", x, out=y, axis=axis)]
    yield [_node("CumSum", x, f"axis{axis}", out=y)]
    yield [_node("Tanh", x, out=y)]
    yield [_node("Concat", x, x, out=y, axis=axis)]
    yield [_node("LayerNormalization", x, "unit", out=y, axis=2)]
    yield [_node("Transpose", x, out=f"{y}t", perm=order), _node("Reshape", f"{y}t", "pair", out=y)]
    yield [
        _node("Transpose", x, out=f"{y}t", perm=[0, 2, 1]),
        _node("MatMul", x, f"{y}t", out=f"{y}s"),
        _node("MatMul", f"{y}s", x, out=y),
    ]
    yield [_node("Slice", x, f"at{axis}", f"to{axis}", f"by{axis}", out=y)]


def _chain(seed: int) -> onnx.ModelProto:
    """A chain of operators whose output has the rows on its first axis, as it may be."""
    generator = np.random.default_rng(seed)
    nodes, name = [], "x"
    for number in range(int(generator.integers(1, 5))):
        stages = [*_stages(generator, name, f"h{number}")]
        nodes += stages[int(generator.integers(len(stages)))]
        name = f"h{number}"
    nodes.append(_node("Shape", "x", out="shape", end=1))
    nodes.append(_node("Concat", "shape", "rest", out="rows", axis=0))
    nodes.append(_node("Reshape", name, "rows", out="y"))
    constants = {
        "unit": np.ones(1, np.float32),
        "rest": np.array([-1]),
        "pair": np.array([0, -1, 1]),
    }
    for axis in range(3):
        constants[f"axis{axis}"] = np.array(axis)
        constants |= {f"at{axis}": np.array([0]), f"to{axis}": np.array([1])}
        constants[f"by{axis}"] = np.array([axis])
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 2, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", "M"])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _shows_influence(run: parity.OnnxRun, requests: list[Arrays]) -> bool | None:
    """Whether another first request changes the rows of the others; None if it does not run."""
    whole = np.concatenate([one["x"] for one in requests])
    other = whole.copy()
    other[0] = 5 - 3 * other[0]
    results = [run({"x": rows})["y"] for rows in (whole, other)]
    alone = run(requests[-1])["y"]
    is_moved = results[0][-1:].shape != alone.shape or not np.allclose(
        results[0][-1:], alone, atol=1e-4
    )
    return is_moved or not np.allclose(results[0][1:], results[1][1:], atol=1e-5)


def test_no_chain_whose_rows_influence_each_other_passes(tmp_path: Path) -> None:
    """Of 400 chains of operators, all whose runs show an influence are found by their graph."""
    onnxruntime.set_default_logger_severity(4)
    generator = np.random.default_rng(1)
    requests = [{"x": generator.standard_normal((1, 2, 3)).astype(np.float32)} for _ in range(5)]
    passed, shown, found = [], 0, 0
    for seed in range(400):
        path = tmp_path / "model.onnx"
        onnx.save(_chain(seed), path)
        try:
            run = parity.runner(path)
            shows = _shows_influence(run, requests)
        except parity.ModelError:
            continue  # a reshape that does not fit these sizes
        reasons = influence.mixing(path, requests)
        shown += bool(shows)
        found += bool(reasons)
        if shows and not reasons:
            passed.append(seed)
    assert not passed
    assert 60 < shown <= found < 330


_BEGIN = """
    agraph (float[N, 4] x) => (float[N, 4] y)
    <int64 zero = {0}, int64 one = {1}, int64 k = {%d}, int64[1] k1 = {%d}, int64[1] zero1 = {0},
     int64[1] one1 = {1}, int64[1] four1 = {4}, int64[1] rest = {-1}> {
        shape = Shape (x)
        n = Gather (shape, zero)
        n1 = Shape <end = 1> (x)
        r = Range (zero, n, one)
"""
_INDICES = {
    "turns": "i = Mod (r, k)",
    "stops": "i = Min (r, k)",
    "goes back": "b = Greater (r, k) z = Sub (r, k) i = Where (b, z, r)",
    "halves": "b = Div (r, k) z = Mul (b, k) i = Sub (r, z)",
}
_NUMBERS = {
    "divided": "e = Div (n1, k1)",
    "more than": "b = Greater (n1, k1) e = Cast <to = 7> (b)",
    "beyond": "b = Max (n1, k1) e = Sub (b, k1)",
    "out of a range": "f = Div (n, k) g = Add (f, one) e = Range (f, g, one)",
}
_BY_INDEX = {
    "Gather": "y = Gather (x, i)",
    "GatherND": "j = Unsqueeze (i, one1) y = GatherND (x, j)",
    "GatherElements": "j = Unsqueeze (i, one1) w = Expand (j, shape)"
    " y = GatherElements <axis = 0> (x, w)",
    "ScatterND": "j = Unsqueeze (i, one1) y = ScatterND (x, j, x)",
    "added": 'j = Unsqueeze (i, one1) y = ScatterND <reduction = "add"> (x, j, x)',
    "a mask": "a = Unsqueeze (r, one1) c = Unsqueeze (i, zero1) q = Equal (a, c)"
    " w = Cast <to = 1> (q) y = MatMul (w, x)",
}
_BY_NUMBER = {
    "Slice": "c = Concat <axis = 0> (x, x) to = Add (n1, e) y = Slice (c, e, to, zero1)",
    "Split": "c = Concat <axis = 0> (x, x) u = Add (n1, e) v = Sub (n1, e)"
    " w = Concat <axis = 0> (u, v) t, y = Split <axis = 0> (c, w)",
    "Reshape": "d = Add (e, one1) w = Concat <axis = 0> (d, rest, four1) h = Reshape (x, w)"
    " m = ReduceMean <axes = [0]> (h) u = Sub (h, m) y = Reshape (u, shape)",
    "Mul": "d = Add (e, one1) w = Cast <to = 1> (d) y = Mul (x, w)",
    "a filled size": "d = Add (e, one1) w = ConstantOfShape <value = float[1] {1}> (d)"
    " t = ReduceSum <keepdims = 0> (w) y = Mul (x, t)",
    "Expand": "d = Add (e, one1) w = Concat <axis = 0> (d, one1, one1) h = Expand (x, w)"
    " y = ReduceSum <keepdims = 0> (h, zero1)",
    "a column": "c = Concat <axis = 1> (x, x) to = Add (e, four1) y = Slice (c, e, to, one1)",
}
_NEUTRAL = {
    "of its own": "y = Gather (x, r)",
    "negative": "l = Sub (r, n) b = Less (l, zero) z = Add (l, n) i = Where (b, z, l)"
    " y = Gather (x, i)",
    "within": "b = Max (r, zero) c = Sub (n, one) i = Min (b, c) y = Gather (x, i)",
    "modulo the rows": "i = Mod (r, n) y = Gather (x, i)",
    "divided by one": "e = Mul (n1, four1) d = Div (e, four1) y = Slice (x, zero1, d, zero1)",
    "a mask of ones": "b = Less (r, n) w = Cast <to = 1> (b) c = Unsqueeze (w, one1)"
    " y = Mul (x, c)",
}


def _counted(seed: int) -> tuple[str, int]:
    """A graph that treats rows otherwise from a number of rows on, and that number."""
    generator = np.random.default_rng(seed)
    start = int(generator.integers(6, 120) if seed % 3 else generator.integers(120, 1500))
    one, other = (_INDICES, _BY_INDEX) if seed % 2 else (_NUMBERS, _BY_NUMBER)
    parts = [[*part.values()][int(generator.integers(len(part)))] for part in (one, other)]
    return _BEGIN % (start, start) + " ".join(parts) + "}", start


@pytest.mark.parametrize("seed", range(24))
def test_rows_that_meet_from_a_number_of_rows_on_are_found(seed: int, tmp_path: Path) -> None:
    """Sizes are computed for many numbers of rows, not those of the requests at hand alone."""
    text, start = _counted(seed)
    path = _saved(text, tmp_path / "model.onnx")
    rows = np.random.default_rng(0).standard_normal((2 * start + 2, 4)).astype(np.float32)
    run = parity.runner(path)
    with contextlib.suppress(parity.ModelError):  # a size that does not fit is an influence, too
        together = run({"x": rows})["y"]
        spread = np.linspace(0, len(rows) - 1, 150).astype(int)
        some = np.union1d(spread, range(start - 2, start + 3))
        alone = np.vstack([run({"x": rows[at : at + 1]})["y"] for at in some])
        assert len(together) != len(rows) or not np.allclose(together[some], alone)
    assert influence.mixing(path, _requests(path))


@pytest.mark.parametrize("text", _NEUTRAL.values(), ids=_NEUTRAL)
def test_what_is_computed_from_the_number_of_rows_and_changes_nothing_is_followed(
    text: str, tmp_path: Path
) -> None:
    """Exporters write such indices."""
    path = _saved(_BEGIN % (8, 8) + text + "}", tmp_path / "model.onnx")
    assert influence.mixing(path, _requests(path)) == ()


@pytest.mark.parametrize("size", [16, 40])
def test_rows_that_meet_in_longer_requests_are_found(size: int, tmp_path: Path) -> None:
    """Sizes past the graph's constants, and past the usual ones, are followed, too."""
    text = f"""
        agraph (float[N, L] x) => (float[N, L] y)
        <int64[1] most = {{{size}}}, int64[1] none = {{0}}, int64[1] less = {{-1}}> {{
            length = Shape <start = 1> (x)
            many = Greater (length, most)
            by = Cast <to = 7> (many)
            back = Mul (by, less)
            pads = Concat <axis = 0> (by, none, back, none)
            y = Pad (x, pads)
        }}"""
    path = _saved(text, tmp_path / "model.onnx")
    found = parity.row_influence(graph.contract_of(path), parity.runner(path))
    assert found is not None
    assert "Pad 'y'" in str(found.reason)


def test_what_is_empty_at_the_smallest_size_is_followed_at_others(tmp_path: Path) -> None:
    """Differences of neighbours, of which a request of one column has none."""
    text = """
        agraph (float[N, L] x) => (float[N, 1] y)
        <int64[1] first = {0}, int64[1] last = {-1}, int64[1] axis = {1}> {
            head = Slice (x, first, last, axis)
            y = ReduceSum <keepdims = 1> (head, axis)
        }"""
    path = _saved(text, tmp_path / "model.onnx")
    found = parity.row_influence(graph.contract_of(path), parity.runner(path))
    assert found is not None
    assert found.agrees, found.reason
    assert influence.mixing(path, [{"x": np.ones((1, 1), np.float32)}] * 5)


def test_an_author_vouches_for_rows_that_are_done(tmp_path: Path) -> None:
    """A loop until all rows are done is left to runs then; a mean over rows in it is not."""
    for name, expected in (
        ("a loop that ends once all rows are done", ()),
        ("within a loop", None),
    ):
        path = _saved(MIXING[name], tmp_path / "model.onnx")
        model = onnx.load(path)
        helper.set_model_props(model, {operators.FINISHED_ROWS_STAY: "True"})
        onnx.save(model, path)
        found = influence.mixing(path, _requests(path))
        assert found == expected or (expected is None and found)


def test_what_runs_only_together_is_not_joined(tmp_path: Path) -> None:
    """Requests of 12 columns are cut into chunks of 8, which only a call of several has."""
    text = """
        agraph (float[N, L] x) => (float[N, L] y) <int64[2] chunks = {-1, 8}> {
            shape = Shape (x)
            c = Reshape (x, chunks)
            s = Softmax <axis = -1> (c)
            y = Reshape (s, shape)
        }"""
    path = _saved(text, tmp_path / "model.onnx")
    contract = replace(graph.contract_of(path), bounds={"L": (8, None)})
    found = parity.row_influence(contract, parity.runner(path))
    assert found is not None
    assert "together that it refuses alone" in str(found.reason)


def test_tensors_of_a_call_are_not_kept(tmp_path: Path) -> None:
    """Of what depends on the inputs only shapes are needed; a large model's would fill memory."""
    text = """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[2] wide = {1, 250000}, int64[1] first = {0}, int64[1] four = {4},
         int64[1] axis = {1}> {
            t1 = Tile (x, wide)
            t2 = Tanh (t1)
            t3 = Neg (t2)
            y = Slice (t3, first, four, axis)
        }"""
    path = _saved(text, tmp_path / "model.onnx")
    program = (
        "import resource, sys; import numpy as np; from pathlib import Path; "
        "from marship.proof import influence, parity\n"
        "parts = [{'x': np.ones((1, 4), np.float32)}] * 5\n"
        "parity.runner(Path(sys.argv[1]))({'x': np.ones((5, 4), np.float32)})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert influence.mixing(Path(sys.argv[1]), parts) == ()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=True)
    assert int(ran.stdout) < 60_000  # kB; one tensor of 5 rows has 20 MB
