"""What packaging for three parties refuses since fixed point loses it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from marship.errors import MarshipError, ParityError, UsageError
from trios import package, write_graph


def dense(path: Path, *weights: float, bias: float = 0.0) -> Path:
    """Diagonal layers of 4, ReLU between them, and a bias behind the last."""
    graph, constants, value = [], [], "x"
    for n, weight in enumerate(weights):
        is_last = n == len(weights) - 1
        made = "y" if is_last else f"h{n}"
        arrays = {f"w{n}": np.eye(4) * weight, f"b{n}": np.full(4, bias * is_last)}
        constants += [numpy_helper.from_array(a.astype(np.float32), k) for k, a in arrays.items()]
        graph.append(helper.make_node("Gemm", [value, *arrays], [made], f"dense{n}"))
        value = made
        if not is_last:
            graph.append(helper.make_node("Relu", [made], [f"r{n}"], f"relu{n}"))
            value = f"r{n}"
    return write_graph(path, graph, (4,), (4,), constants)


ROWS = np.random.default_rng(2).normal(size=(2, 4)).astype(np.float32)
LOST: dict[str, tuple[tuple[float, ...], float, Any, type[MarshipError], str]] = {
    "small outputs": ((1e-5,), 0.0, ROWS, ParityError, "golden inputs within"),
    "a constant that hides it": ((1e-5,), 1.0, ROWS, ParityError, "random inputs within"),
    "a branch without golden rows": (
        (1e-6, 1e6), 1.0, -np.abs(ROWS), ParityError, "random inputs within",
    ),
    "zeros": ((1.0, 1.0), 0.0, -np.abs(ROWS), UsageError, "other than 0, got zeros"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_what_fixed_point_loses_is_refused(tmp_path: Path, case: str) -> None:
    """Against the size of golden outputs and the spread of random ones, however small."""
    weights, bias, golden, kind, reason = LOST[case]
    model = dense(tmp_path / "m.onnx", *weights, bias=bias)
    with pytest.raises(kind, match=reason):
        package(tmp_path / "p", model, golden=golden)


def test_sessions_see_small_outputs_that_are_lost(tmp_path: Path) -> None:
    """The tolerance of a session is below the largest golden output, however small."""
    model = dense(tmp_path / "m.onnx", 0.004)
    trio = package(tmp_path / "p", model, golden=ROWS)
    assert trio.stations[0].program.tolerance < 0.004 * np.abs(ROWS).max() / 2
