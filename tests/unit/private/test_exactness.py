"""Models that encryption cannot compute exactly enough are refused at export, in one line."""

from pathlib import Path

import numpy as np
import pytest

from marship.contract import Arrays
from marship.errors import MarshipError, ModelError, ParityError
from marship.private import step
from private_runs import SQUARE, WEIGHTS, node, run_folder

SMALL_SQUARE = [
    node("MatMul", "x", "a", out="h"),
    node("Mul", "h", "h", out="q"),
    node("Mul", "q", "small", out="r"),
    node("Add", "r", "h", out="s"),
    node("MatMul", "s", "b", out="p"),
    node("Add", "p", "c", out="y"),
]
"""`s = small h^2 + h`"""


def scaled(hidden: float) -> Arrays:
    """Weights of SQUARE whose hidden values are scaled, and scaled back behind the square."""
    first, last = WEIGHTS["a"] * hidden, WEIGHTS["b"] / hidden**2
    return WEIGHTS | {"a": first.astype(np.float32), "b": last.astype(np.float32)}


def refused(kind: type[MarshipError], folder: Path, *given: object) -> str:
    """What `export` says about a model, and that it leaves nothing."""
    run = run_folder(folder / "run", *given)  # type: ignore[arg-type]
    before = sorted(run.iterdir())
    with pytest.raises(kind) as caught:
        step.compile_run(run)
    assert sorted(run.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_small_square_beside_a_slope_is_refused(tmp_path: Path) -> None:
    """Its completed square is large and cancels: an error of hundreds where answers are 3."""
    weights = WEIGHTS | {"small": np.array(3e-5, np.float32)}
    said = refused(ParityError, tmp_path, SMALL_SQUARE, "synthetic", weights)
    assert "must be within 1 % of the largest output" in said
    assert "those of s, up to" in said


def test_small_hidden_values_are_refused(tmp_path: Path) -> None:
    """The weights behind them enlarge the noise."""
    said = refused(ParityError, tmp_path, SQUARE, "synthetic", scaled(1e-6))
    assert "must be within 1 % of the largest output" in said
    assert "those of s, up to" in said


def test_constants_beyond_the_ring_are_refused(tmp_path: Path) -> None:
    """With the layer that they lead to: a still smaller factor, whose constant is b^2/4a."""
    weights = WEIGHTS | {"small": np.array(1e-6, np.float32)}
    said = refused(ModelError, tmp_path, SMALL_SQUARE, "synthetic", weights)
    assert "constants that lead to y must fit the ring, got" in said
    assert "keep the square's factor in an activation from being small" in said


@pytest.mark.parametrize(("hidden", "named"), [(1e-12, "h"), (1e6, "y")])
def test_weights_that_round_to_zero_are_refused(hidden: float, named: str, tmp_path: Path) -> None:
    """With the layer that they lead to, before or behind the square."""
    said = refused(ModelError, tmp_path, SQUARE, "synthetic", scaled(hidden))
    assert f"weights that lead to {named} must not round to zero at 2^-36, got a diag" in said
    assert "Scale them up, and those of the layer behind it or before it down." in said
