"""Rows of a call are followed through the graph: what mixes them is found whatever the values."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from marship.proof import influence, parity

Arrays = dict[str, np.ndarray]

MIXING = {
    "a mean over all rows, of any size": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            m = ReduceMean <axes = [0], keepdims = 1> (x)
            y = Sub (x, m)
        }""",
    "a product that is 0, unless a value is infinite": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[1] second = {1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            places = Range (zero, n, one)
            a = Unsqueeze (places, first)
            b = Unsqueeze (places, second)
            same = Equal (a, b)
            eye = Cast <to = 1> (same)
            y = MatMul (eye, x)
        }""",
    "scores of rows by rows": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            t = Transpose <perm = [1, 0]> (x)
            s = MatMul (x, t)
            p = Softmax <axis = -1> (s)
            y = MatMul (p, x)
        }""",
    "the number of rows as a value": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 zero = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            f = Cast <to = 1> (n)
            y = Div (x, f)
        }""",
    "the place of a row as a value": """
        agraph (float[N] x) => (float[N] y) <int64 zero = {0}, int64 one = {1}> {
            n = Size (x)
            places = Range (zero, n, one)
            f = Cast <to = 1> (places)
            y = Add (x, f)
        }""",
    "a branch by the number of rows": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 zero = {0}, int64 most = {64}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            many = Greater (n, most)
            y = If (many) <
                then_branch = yes () => (float[N, 4] a) { a = Neg (x) },
                else_branch = no () => (float[N, 4] b) { b = Identity (x) }
            >
        }""",
    "normalized in training form": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <float[4] s = {1, 1, 1, 1}, float[4] b = {0, 0, 0, 0}, float[4] m = {0, 0, 0, 0},
         float[4] v = {1, 1, 1, 1}> {
            y, mean, var = BatchNormalization <training_mode = 1> (x, s, b, m, v)
        }""",
    "the previous row": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[1] zero = {0}, int64[1] last = {-1}, int64[1] axis = {0}, int64[1] one = {1}> {
            head = Slice (x, zero, last, axis)
            first = Slice (x, zero, one, axis)
            moved = Concat <axis = 0> (first, head)
            y = Add (x, moved)
        }""",
    "in another order": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[1] start = {-1}, int64[1] end = {-1000}, int64[1] axis = {0}, int64[1] by = {-1}> {
            y = Slice (x, start, end, axis, by)
        }""",
    "a reshape that puts two rows beside each other": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64[2] across = {4, -1}> {
            turned = Reshape (x, across)
            y = Transpose <perm = [1, 0]> (turned)
        }""",
    "the largest word of all rows": """
        agraph (string[N] x) => (float[N] y) <string word = {"zebra"}> {
            same = Equal (x, word)
            f = Cast <to = 1> (same)
            m = ReduceMax <keepdims = 0> (f)
            y = Add (f, m)
        }""",
    "behind numbers of eight bits": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            small = Cast <to = 17> (x)
            wide = Cast <to = 1> (small)
            m = ReduceMax <keepdims = 0> (wide)
            y = Sub (wide, m)
        }""",
    "within a loop": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 rounds = {2}, bool go = {1}> {
            y = Loop (rounds, go, x) <body = round (int64 i, bool on, float[N, 4] h) =>
                (bool on_out, float[N, 4] h_out) {
                on_out = Identity (on)
                m = ReduceMean <axes = [0], keepdims = 1> (h)
                h_out = Sub (h, m)
            }>
        }""",
    "only from the second round of a loop on": """
        agraph (float[N, 4] x) => (float[1, 4] z, float[N, 4] y)
        <int64 rounds = {2}, bool go = {1}, float[1, 4] zero = {0, 0, 0, 0}> {
            z, y = Loop (rounds, go, zero, x) <body = round (int64 i, bool on, float[1, 4] s,
                float[N, 4] h) => (bool on_out, float[1, 4] s_out, float[N, 4] h_out) {
                on_out = Identity (on)
                s_out = ReduceMax <axes = [0], keepdims = 1> (h)
                h_out = Add (h, s)
            }>
        }""",
    "within a scan over steps": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            steps = Transpose <perm = [1, 0]> (x)
            o = Scan <num_scan_inputs = 1, body = step (float[N] h) => (float[N] h_out) {
                m = ReduceMax <keepdims = 0> (h)
                h_out = Sub (h, m)
            }> (steps)
            y = Transpose <perm = [1, 0]> (o)
        }""",
    "within a function": """
        agraph (float[N, 4] x) => (float[N, 4] y) { y = local.centred (x) }
        <opset_import: ["" : 17], domain: "local"> centred (x) => (y) {
            m = ReduceMean <axes = [0], keepdims = 1> (x)
            y = Sub (x, m)
        }""",
}

ROW_WISE = {
    "attention over tokens of a row, heads beside the batch": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[3] tokens = {0, 2, 2}, int64[3] heads = {2, -1, 1}, int64[2] flat = {-1, 4},
         int64[3] back = {2, -1, 2}> {
            t = Reshape (x, tokens)
            steps = Transpose <perm = [1, 0, 2]> (t)
            h = Reshape (steps, heads)
            q = Transpose <perm = [1, 0, 2]> (h)
            k = Transpose <perm = [0, 2, 1]> (q)
            s = MatMul (q, k)
            p = Softmax <axis = -1> (s)
            o = MatMul (p, q)
            u = Transpose <perm = [1, 0, 2]> (o)
            r = Reshape (u, back)
            m = Transpose <perm = [1, 0, 2]> (r)
            y = Reshape (m, flat)
        }""",
    "two copies behind each other, cut again": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            n = Neg (x)
            both = Concat <axis = 0> (x, n)
            e = Tanh (both)
            a, b = Split <axis = 0, num_outputs = 2> (e)
            y = Sub (a, b)
        }""",
    "a state of zeros for each row": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 zero = {0}, int64[1] wide = {4},
         int64[1] axis = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            rows = Unsqueeze (n, axis)
            size = Concat <axis = 0> (rows, wide)
            start = ConstantOfShape (size)
            y = Add (x, start)
        }""",
    "sizes that follow from those of the input": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 zero = {0}, int64[1] rest = {-1},
         int64[1] axis = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            rows = Unsqueeze (n, axis)
            size = Concat <axis = 0> (rows, rest)
            t = Reshape (x, size)
            y = Relu (t)
        }""",
    "a scan over steps, with a state of each row": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64[1] rest = {1}, int64 zero = {0}> {
            steps = Transpose <perm = [1, 0]> (x)
            shape = Shape (x)
            axis = Constant <value_ints = [0]> ()
            n = Gather (shape, axis)
            start = ConstantOfShape (n)
            last, o = Scan <num_scan_inputs = 1, body = step (float[N] s, float[N] h) =>
                (float[N] s_out, float[N] h_out) {
                s_out = Add (s, h)
                h_out = Tanh (s_out)
            }> (start, steps)
            y = Transpose <perm = [1, 0]> (o)
        }""",
    "a loop over rounds": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 rounds = {3}, bool go = {1}> {
            y = Loop (rounds, go, x) <body = round (int64 i, bool on, float[N, 4] h) =>
                (bool on_out, float[N, 4] h_out) {
                on_out = Identity (on)
                t = Tanh (h)
                p = Softmax <axis = 1> (t)
                h_out = Add (h, p)
            }>
        }""",
    "a branch by another size": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 one = {1}, int64 most = {64}> {
            shape = Shape (x)
            n = Gather (shape, one)
            many = Greater (n, most)
            y = If (many) <
                then_branch = yes () => (float[N, 4] a) {
                    m = ReduceMean <axes = [0]> (x)
                    a = Add (x, m)
                },
                else_branch = no () => (float[N, 4] b) { b = Neg (x) }
            >
        }""",
}


def _saved(text: str, path: Path) -> Path:
    newer = {"num_outputs": 18, "string[N]": 19, "to = 17": 19}
    opset = max((version for word, version in newer.items() if word in text), default=17)
    opsets = f'"" : {opset}' + (', "local" : 1' if "local." in text else "")
    model = parser.parse_model(f"<ir_version: 9, opset_import: [{opsets}]>" + text)
    onnx.save(model, path)
    return path


def _requests(path: Path) -> list[Arrays]:
    """Requests of one row, of the file's own type."""
    (value,) = onnx.load(path).graph.input
    shape = [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
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
