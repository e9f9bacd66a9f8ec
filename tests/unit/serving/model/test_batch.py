"""Requests share a call of the model where that changes no response, and fail alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.contract import Arrays, Contract, TensorSpec
from marship.errors import (
    InvalidInputError,
    MalformedError,
    MarshipError,
    ModelError,
    TooLargeError,
)
from marship.proof import graph
from marship.serving.formats.tensors import conform
from marship.serving.model.batch import Batcher, paddable_axes, validate
from marship.serving.model.session import Session, SessionSettings


def ids(*rows: list[int]) -> Arrays:
    """A request to the lookup model."""
    return {"ids": np.array(rows, np.int64)}


class Counted:
    """A loaded model that remembers the shapes it was called with."""

    def __init__(self, path: Path, contract: Contract) -> None:
        self.session = Session(path.parent, contract, SessionSettings(intra_op_threads=1))
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run the model and note the first input's shape."""
        self.shapes.append(next(iter(inputs.values())).shape)
        return self.session.run(inputs)


def lookup(path: Path, *, pads: bool, batches: bool = True) -> tuple[Batcher, Counted]:
    """A batcher for the lookup model, with what was proven about it as given."""
    contract = graph.contract_of(path, pad_values={"ids": 0} if pads else None)
    contract = replace(contract, batch_axis="batch" if batches else None)
    run = Counted(path, contract)
    return Batcher(contract, run), run


def totals(answers: list[Arrays | MarshipError]) -> list[list[float] | str]:
    """Each response's total, or its error's code."""
    return [a.code if isinstance(a, MarshipError) else a["total"].tolist() for a in answers]


def test_requests_of_one_shape_share_a_call(lookup_onnx: Path) -> None:
    """Three requests of 1, 2 and 1 rows are one call of 4 rows, and get their own rows back."""
    batcher, run = lookup(lookup_onnx, pads=False)
    assert totals(batcher([ids([1, 2]), ids([3, 4], [5, 6]), ids([7, 8])])) == [[3], [7, 11], [15]]
    assert run.shapes == [(4, 2)]


def test_lengths_share_a_call_only_where_padding_is_proven(lookup_onnx: Path) -> None:
    """With a pad value different lengths are one call; without one, a call for each length."""
    requests = [ids([1, 2, 3]), ids([4]), ids([5, 6])]
    padded, padded_run = lookup(lookup_onnx, pads=True)
    strict, strict_run = lookup(lookup_onnx, pads=False)
    assert totals(padded(requests)) == totals(strict(requests)) == [[6], [4], [11]]
    assert padded_run.shapes == [(3, 3)]
    assert sorted(strict_run.shapes) == [(1, 1), (1, 2), (1, 3)]


def test_rows_that_influence_each_other_run_alone(lookup_onnx: Path) -> None:
    """Without a proven batch axis every request is a call of its own."""
    batcher, run = lookup(lookup_onnx, pads=True, batches=False)
    assert totals(batcher([ids([1]), ids([2])])) == [[1], [2]]
    assert run.shapes == [(1, 1), (1, 1)]


def test_requests_run_alone_where_joining_gains_nothing(lookup_onnx: Path) -> None:
    """Without `joins` each has a call of its own, though their shapes are one."""
    batcher, run = lookup(lookup_onnx, pads=False)
    batcher.joins = False
    assert totals(batcher([ids([1, 2]), ids([3, 4])])) == [[3], [7]]
    assert run.shapes == [(1, 2), (1, 2)]


def test_a_request_of_several_parts_gets_a_list(lookup_onnx: Path) -> None:
    """Each part gets its own response, between requests of one part; an empty list stays so."""
    batcher, _ = lookup(lookup_onnx, pads=False)
    bad = InvalidInputError("bad")
    one, several, none, last = batcher.run_parts([ids([1]), [ids([2, 3]), bad, ids([4])], [], bad])
    assert totals([one]) == [[1]]
    assert totals([several[0], several[2]]) == [[5], [4]]
    assert several[1] is last is bad
    assert none == []


def test_three_bad_of_32_leave_29_responses(lookup_onnx: Path) -> None:
    """A wrong type, a decoding error and a failing run get their errors, 29 their responses."""
    batcher, _ = lookup(lookup_onnx, pads=True)
    requests: list[Arrays | MarshipError] = [ids([i % 10, 1]) for i in range(32)]
    requests[3] = {"ids": np.array([[1.0]], np.float32)}
    requests[17] = MalformedError("the body must be JSON, got: none.")
    requests[30] = ids([99])
    found = totals(batcher(requests))
    assert [found[3], found[17], found[30]] == ["invalid_input", "malformed", "model"]
    good = [i for i in range(32) if i not in (3, 17, 30)]
    assert [found[i] for i in good] == [[i % 10 + 1.0] for i in good]


def test_output_axes_are_cut_back_to_the_request() -> None:
    """Outputs that keep the padded axis come back at each request's own length."""
    spec = TensorSpec("x", "float32", ("batch", "length"), pad_value=0)
    contract = Contract(
        (spec,), (replace(spec, name="y", pad_value=None),), ("m",), "", 20, "batch"
    )
    batcher = Batcher(contract, lambda inputs: {"y": inputs["x"] * 2})
    answers = batcher([{"x": np.ones((1, n), np.float32)} for n in (1, 4)])
    shapes = [a["y"].shape for a in answers if not isinstance(a, MarshipError)]
    assert shapes == [(1, 1), (1, 4)]


def test_a_batch_leaves_nothing_in_the_next(lookup_onnx: Path) -> None:
    """Memory is kept between batches, and a smaller or shorter batch sees only its own values."""
    batcher, _ = lookup(lookup_onnx, pads=True)
    big = [ids([9, 9, 9, 9]) for _ in range(4)]
    assert totals(batcher(big)) == [[36]] * 4
    assert totals(batcher([ids([1]), ids([2, 3])])) == [[1], [5]]
    assert totals(batcher(big)) == [[36]] * 4


def test_an_axis_with_computed_outputs_is_never_padded() -> None:
    """An output axis such as 2*length cannot be cut back, so the axis is not filled up."""
    spec = TensorSpec("x", "float32", ("batch", "length"), pad_value=0)
    output = TensorSpec("y", "float32", ("batch", "2*length"))
    assert paddable_axes(Contract((spec,), (output,), ("m",), "", 20, "batch")) == frozenset()


BAD = {
    "type": (np.zeros((1, 2), np.float32), "got float32"),
    "rank": (np.zeros(2, np.int64), "One row is a list of one row"),
    "empty": (np.zeros((1, 0), np.int64), "from 1 to 5, got 0"),
    "long": (np.zeros((1, 6), np.int64), "from 1 to 5, got 6"),
    "no rows": (np.zeros((0, 2), np.int64), "at least 1, got 0"),
    "odd rows": (np.zeros((3, 2), np.int64), "at least 1 and a multiple of 2, got 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_breaks_the_contract_is_named(lookup_onnx: Path, case: str) -> None:
    """A tensor of the wrong type, rank or size raises an error that names the rule."""
    contract = graph.contract_of(lookup_onnx, bounds={"length": (1, 5)})
    array, words = BAD[case]
    contract = replace(contract, steps={"batch": 2} if case == "odd rows" else {})
    with pytest.raises(InvalidInputError, match=words):
        validate(conform({"ids": array}, contract), contract)


@pytest.mark.parametrize(
    ("shape", "array", "words"),
    [
        (
            ("rows", 1),
            ["good film"],
            r"\[1\]\. Each value is a list of one: \[\[\.\.\.\], \[\.\.\.\]\]\.",
        ),
        (("rows", 1), ["a", "b"], "Each value is a list of one"),
        (("rows", "steps", 1), [["a", "b"]], r"a list of one: \[\[\[\.\.\.\], \[\.\.\.\]\]\]\."),
        (("rows", 2), ["a", "b"], "One row is a list of one row"),
        (("rows", 2), [[["a"]]], r"got shape \[1, 1, 1\]\.$"),
    ],
)
def test_where_lists_are_missing_is_said(
    shape: tuple[str | int, ...], array: object, words: str
) -> None:
    """Around all, or around each value of a column: so skl2onnx writes inputs."""
    spec = TensorSpec("title", "str", shape)
    contract = Contract((spec,), (TensorSpec("y", "float32", ("rows",)),), ("m",), "", 20, "rows")
    with pytest.raises(InvalidInputError, match=words):
        validate({"title": np.array(array, object)}, contract)


def test_values_that_are_no_numbers_are_refused_unless_allowed(linear_onnx: Path) -> None:
    """NaN and infinity are refused by default; a model for which NaN means missing may allow it."""
    contract = graph.contract_of(linear_onnx)
    inputs = {"input": np.array([[1, np.nan, np.inf]], np.float32)}
    with pytest.raises(InvalidInputError, match="finite"):
        validate(inputs, contract)
    assert validate(inputs, contract, allow_non_finite=True) == {"batch": 1}


def test_axes_shared_by_inputs_must_agree() -> None:
    """Two inputs that name one axis must send one size for it."""
    inputs = tuple(TensorSpec(name, "float32", ("batch",)) for name in "ab")
    contract = Contract(inputs, (), ("m",), "", 20)
    with pytest.raises(InvalidInputError, match="one size in all inputs, got 1 and 2"):
        validate({"a": np.zeros(1, np.float32), "b": np.zeros(2, np.float32)}, contract)


def test_a_run_that_fails_for_one_request_alone_is_the_requests(
    lookup_onnx: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What ONNX Runtime refuses while it takes a golden case; the log has what it said."""
    batcher, _ = lookup(lookup_onnx, pads=True)
    batcher.sample = ids([1])
    answers = batcher([ids([99]), ids([3])])
    assert totals(answers) == ["invalid_input", [3]]
    assert "Gather" not in str(answers[0])
    assert "Gather" in caplog.text
    assert str(answers[0]).rstrip(".").split()[-1] in caplog.text


def test_a_run_that_fails_for_golden_inputs_is_the_servers(lookup_onnx: Path) -> None:
    """So is one where there are none to compare with."""
    batcher, _ = lookup(lookup_onnx, pads=True)
    assert isinstance(batcher([ids([99])])[0], ModelError)

    def fail(_: Arrays) -> Arrays:
        raise ModelError("the device is gone")

    batcher.sample, batcher.run = ids([1]), fail
    assert isinstance(batcher([ids([2])])[0], ModelError)


def test_a_run_that_fails_once_is_repeated(lookup_onnx: Path) -> None:
    """A request that runs at the second try has its response."""
    batcher, run = lookup(lookup_onnx, pads=True)
    failures = iter([True])

    def fail_once(inputs: Arrays) -> Arrays:
        if next(failures, False):
            raise ModelError("a thread could not be started")
        return run(inputs)

    batcher.sample, batcher.run = ids([1]), fail_once
    assert totals(batcher([ids([2])])) == [[2]]


@pytest.mark.parametrize("words", ["Failed to allocate memory for requested buffer", "bad_alloc"])
def test_a_request_that_needs_too_much_memory_is_too_large(lookup_onnx: Path, words: str) -> None:
    """413, and no word of the allocator."""
    batcher, run = lookup(lookup_onnx, pads=True)

    def refuse(inputs: Arrays) -> Arrays:
        if inputs["ids"].max() > 9:
            raise ModelError(f"ONNX Runtime must run the model, got: {words}")
        return run(inputs)

    batcher.sample, batcher.run = ids([1]), refuse
    (answer,) = batcher([ids([99])])
    assert isinstance(answer, TooLargeError)
    assert words not in str(answer)


ROWS = st.integers(1, 4)
HISTORY = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(st.tuples(ROWS, HISTORY), min_size=1, max_size=12), pads=st.booleans())
def test_together_is_as_alone(
    lookup_onnx: Path, requests: list[tuple[int, list[int]]], pads: bool
) -> None:
    """Any mix of rows, lengths and failing requests gets the responses of each by itself."""
    batcher, _ = lookup(lookup_onnx, pads=pads)
    bodies = [ids(*[history] * rows) for rows, history in requests]
    assert totals(batcher(bodies)) == [totals(batcher([body]))[0] for body in bodies]


def filtering(*, padded: bool = False) -> Batcher:
    """A batcher of a model that keeps rows over 0, or the first half of the columns, unstated."""
    spec = TensorSpec("x", "float32", ("batch", "length"), pad_value=0 if padded else None)
    output = replace(spec, name="y", pad_value=None)

    def run(inputs: Arrays) -> Arrays:
        x = inputs["x"]
        return {"y": x[:, : (x.shape[1] + 1) // 2] if padded else x[x[:, 0] > 0]}

    return Batcher(Contract((spec,), (output,), ("m",), "", 20, "batch"), run)


@settings(max_examples=100, deadline=None)
@given(
    padded=st.booleans(),
    requests=st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=4), min_size=1, max_size=6),
)
def test_a_filter_gives_each_request_what_it_gives_alone(
    padded: bool, requests: list[list[int]]
) -> None:
    """A model that drops rows, or columns, never mixes up the responses of two requests."""
    batcher = filtering(padded=padded)
    bodies: list[Arrays | MarshipError] = [
        {"x": np.array([row] if padded else [[value] for value in row], np.float32)}
        for row in requests
    ]
    alone = [filtering(padded=padded)([body])[0] for body in bodies]
    for _ in range(2):
        together = batcher(bodies)
        for got, want in zip(together, alone, strict=True):
            assert not isinstance(got, MarshipError)
            assert not isinstance(want, MarshipError)
            np.testing.assert_array_equal(got["y"], want["y"])
            assert got["y"].shape == want["y"].shape


def test_joining_ends_with_the_first_call_whose_rows_do_not_fit() -> None:
    """The mismatch is told once, and from then on each request has its own call."""
    seen: list[str] = []
    batcher = filtering()
    batcher.on_mixed = seen.append
    rows: list[Arrays | MarshipError] = [
        {"x": np.full((1, 1), value, np.float32)} for value in (1, 2)
    ]
    batcher(rows)
    assert batcher.joins
    batcher([*rows, {"x": np.zeros((1, 1), np.float32)}])
    assert not batcher.joins
    batcher([*rows, {"x": np.zeros((1, 1), np.float32)}])
    assert len(seen) == 1
    assert "output y came as [2, 1]" in seen[0]
