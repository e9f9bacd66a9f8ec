"""marship.proof.rows: what the proof of independent rows finds, leaves out, and says."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from marship.contract import Arrays, Contract, TensorSpec
from marship.errors import ModelError
from marship.proof.comparison import RowProof
from marship.proof.parity import row_influence

X = TensorSpec("x", "float32", ("n", 4))
Y = TensorSpec("y", "float32", ("n", 4))
Function = Callable[[np.ndarray], np.ndarray]
WEIGHTS = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)


def proof(function: Function, examples: np.ndarray | None = None, **options: object) -> RowProof:
    """What is found of a function from x to y."""
    bounds = {"n": options.pop("bounds")} if "bounds" in options else {}
    x = replace(X, takes_missing=bool(options.pop("takes_missing", False)))
    contract = Contract((x,), (Y,), ("m.onnx",), "", 21, bounds=bounds)

    def run(inputs: Arrays) -> Arrays:
        return {"y": np.asarray(function(inputs["x"]), np.float32)}

    found = row_influence(contract, run, None if examples is None else {"x": examples}, **options)
    assert found is not None
    return found


def linear(x: np.ndarray) -> np.ndarray:
    """Each row by itself."""
    return x @ WEIGHTS


MIXING: dict[str, Function] = {
    "normalized over the batch": lambda x: (x - x.mean(0)) / (x.std(0) + 1e-5),
    "min and max of the call": lambda x: (x - x.min()) / (x.max() - x.min() + 1e-9),
    "bytes or floats": lambda x: x / 255 if x.max() > 10 else x,
    "an influence of a thousandth": lambda x: x + 1e-3 * x.mean(0),
    "an influence of a millionth": lambda x: x + 1e-6 * x.max(),
    "an extreme row elsewhere": lambda x: x * (1 + (x.max() > 50_000)),
    "all zeros": lambda x: x + (x == 0).all(),
    "any equal rows": lambda x: x + (len(np.unique(x, axis=0)) < len(x)),
    "a large batch": lambda x: x * 2 if len(x) > 64 else x,
    "a capacity of 300 rows": lambda x: x * (np.arange(len(x)) < 300)[:, None],
    "a batch of three": lambda x: x * 2 if len(x) == 3 else x,
    "neighbours": lambda x: x + np.roll(x, 1, axis=0),
    "the order of rows": lambda x: np.sort(x, axis=0),
    "the first row": lambda x: x + x[:1],
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rows_that_influence_each_other_are_found(name: str, rows: int) -> None:
    """Without examples, with one row of them, and with several: one row proved anything before."""
    examples = np.random.default_rng(1).normal(size=(rows, 4)).astype(np.float32) if rows else None
    found = proof(MIXING[name], examples)
    assert not found.agrees
    assert found.reason


def filled(x: np.ndarray, values: np.ndarray | float) -> np.ndarray:
    """Values in place of NaN, before a linear layer."""
    return linear(np.where(np.isnan(x), values, x))


def means(x: np.ndarray) -> np.ndarray:
    """By column, of what is there; NaN of nothing."""
    there = ~np.isnan(x)
    return np.where(there, x, 0).sum(0) / np.where(there.any(0), there.sum(0), np.nan)


MIXING_GAPS: dict[str, Function] = {
    "the batch's mean": lambda x: filled(x, np.nan_to_num(means(x))),
    "the batch's mean, NaN without any": lambda x: np.where(np.isnan(x), means(x), x),
    "the batch's largest": lambda x: filled(x, np.nanmax(x, initial=0.0)),
    "the first row": lambda x: filled(x, np.nan_to_num(x[0])),
    "any gap shifts all rows": lambda x: filled(x, 0.0) + np.isnan(x).any(),
    "an empty row shifts all rows": lambda x: filled(x, 0.0) + np.isnan(x).all(1).any(),
    "an empty column shifts all rows": lambda x: filled(x, 0.0) + np.isnan(x).all(0).any(),
    "the last column alone": lambda x: np.c_[filled(x, 0.0)[:, :3], np.where(
        np.isnan(x[:, 3:]), np.nan_to_num(means(x[:, 3:])), x[:, 3:])],
}  # fmt: skip


@pytest.mark.parametrize("name", MIXING_GAPS)
@pytest.mark.parametrize("rows", [0, 5])
def test_missing_values_that_come_from_other_rows_are_found(name: str, rows: int) -> None:
    """Where they may be missing, as where they are not no response depends on them."""
    examples = np.random.default_rng(1).normal(size=(rows, 4)).astype(np.float32) if rows else None
    assert not proof(MIXING_GAPS[name], examples, takes_missing=True).agrees
    assert proof(MIXING_GAPS[name], examples).agrees


@pytest.mark.parametrize("fill", [0.0, -7.0, np.nan])
def test_missing_values_that_a_row_fills_itself_are_no_influence(fill: float) -> None:
    """NaN that stays NaN is the row's own, too."""
    found = proof(lambda x: filled(x, fill), takes_missing=True)
    assert found.agrees, found
    assert "single missing values" in found.sets
    assert "rows and columns of missing values" in found.sets


ROW_WISE: dict[str, Function] = {
    "linear": linear,
    "a thousand layers' gain": lambda x: x * np.float32(1e30),
    "probabilities": lambda x: (
        np.exp(x - x.max(1, keepdims=True))
        / np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)
    ),
    "steep": lambda x: np.tanh(linear(x) * 1e4),
    "overflowing": lambda x: np.exp(x.astype(np.float32)),
    "tiny": lambda x: linear(x) * np.float32(1e-12),
}


@pytest.mark.parametrize("name", ROW_WISE)
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value).*:RuntimeWarning")
def test_row_wise_functions_are_shown_to_be(name: str) -> None:
    """What overflows in its own row is that row's affair."""
    found = proof(ROW_WISE[name])
    assert found.agrees, found
    assert found.reason is None
    assert found.largest_batch == 1025


def test_rounding_that_depends_on_the_batch_is_no_influence() -> None:
    """A sum in another order, blown up by a step: the row alone is shaken as much by its inputs."""

    def stepped(x: np.ndarray) -> np.ndarray:
        noise = np.float32(1 + 1e-7 * (len(x) % 5))
        return np.sin(linear(x) * noise * 3e4)

    assert proof(stepped).agrees


def test_a_step_that_depends_on_the_batch_alone_is_one() -> None:
    """No change of its inputs shakes the row so."""
    assert not proof(lambda x: linear(x) * (1 + 0.01 * (len(x) > 5))).agrees


def test_rows_that_the_model_refuses_are_left_out_and_reported() -> None:
    """Those of extreme scale; the rest is proof enough."""

    def choosy(x: np.ndarray) -> np.ndarray:
        if np.abs(x).max() > 20:
            raise ModelError("too large")
        return linear(x)

    found = proof(choosy)
    assert found.agrees
    assert any("the model refuses" in text for text in found.left_out)
    assert not proof(lambda x: choosy(x) - x.mean(0)).agrees


def test_what_refuses_all_rows_or_two_at_once_has_no_proof() -> None:
    """No batch axis without one."""

    def refusing(_x: np.ndarray) -> np.ndarray:
        raise ModelError("never")

    def single(x: np.ndarray) -> np.ndarray:
        if len(x) > 1:
            raise ModelError("one row")
        return x

    assert "nothing can be shown" in str(proof(refusing).reason)
    assert "for a batch of" in str(proof(single).reason)
    assert "no two requests fit" in str(proof(linear, bounds=(1, 1)).reason)


def test_another_number_of_rows_is_reported() -> None:
    """A filter gives one client's rows to another."""
    found = proof(lambda x: x[x[:, 0] > 0])
    assert "rows for 1 of the inputs" in str(found.reason)
    far = proof(lambda x: x[np.abs(x).max(1) < 500_000])
    assert "rows for 1 of the inputs" in str(far.reason)


def test_a_batch_of_at_least_three_is_proven_by_threes() -> None:
    """The smallest request has three rows; rows within a request may do as they like."""

    def by_threes(x: np.ndarray) -> np.ndarray:
        if len(x) % 3:
            raise ModelError("threes")
        return x - x.reshape(-1, 3, 4).mean(1).repeat(3, axis=0)

    assert proof(by_threes, bounds=(3, None)).agrees
    assert not proof(lambda x: x - x.mean(0), bounds=(3, None)).agrees


def test_no_batch_is_larger_than_its_bound() -> None:
    """A model may not take more."""
    sizes = set()

    def noting(x: np.ndarray) -> np.ndarray:
        sizes.add(len(x))
        return linear(x)

    assert proof(noting, bounds=(1, 16)).agrees
    assert max(sizes) == 16


def test_the_time_is_kept_and_what_is_left_out_is_reported() -> None:
    """The first set of rows is tried in any case."""
    found = proof(linear, seconds=0.0)
    assert found.agrees
    assert found.sets == ("usual values",)
    assert "scales from 0.001 to 1000 and what follows: the time is over" in found.left_out
    assert any(text.startswith("a batch of 33") for text in found.left_out)
    assert not proof(lambda x: x - x.mean(0), seconds=0.0).agrees


@pytest.mark.parametrize(("seen", "most"), [(3, 4), (4, 4), (5, 60)])
def test_examples_may_be_shorter_than_the_bound(seen: int, most: int) -> None:
    """Their rows cannot be joined to those of full length; the batches go on without them."""
    x, y = TensorSpec("x", "float32", ("n", "length")), TensorSpec("y", "float32", ("n", 1))
    contract = Contract((x,), (y,), ("m.onnx",), "", 21, bounds={"length": (1, most)})
    examples = {"x": np.random.default_rng(1).normal(size=(5, seen)).astype(np.float32)}

    def run(inputs: Arrays) -> Arrays:
        return {"y": inputs["x"].sum(1, keepdims=True)}

    found = row_influence(contract, run, examples)
    assert found is not None
    assert found.agrees
    assert "rows of the examples" in found.sets
    assert found.largest_batch >= 65


@pytest.mark.parametrize("high", [2**53 + 1, 2**63 - 1])
def test_ranges_up_to_the_end_of_a_type_are_drawn(high: int) -> None:
    """As an export may state them: floats do not hold these numbers."""
    x = TensorSpec("x", "int64", ("n", 4), value_range=(0, high))
    contract = Contract((x,), (Y,), ("m.onnx",), "", 21)
    seen = []

    def run(inputs: Arrays) -> Arrays:
        seen.append(int(inputs["x"].max()))
        return {"y": (inputs["x"] % 7).astype(np.float32)}

    assert row_influence(contract, run).agrees
    assert max(seen) == high
