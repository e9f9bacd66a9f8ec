"""How long calls take is measured at sizes that the model takes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.contract import Arrays, Contract, TensorSpec
from marship.serving.model import pace


@settings(max_examples=200, deadline=None)
@given(
    step=st.integers(1, 5),
    low=st.integers(0, 9),
    more=st.none() | st.integers(0, 20),
)
def test_a_model_is_measured_at_numbers_of_rows_that_it_takes(
    step: int, low: int, more: int | None
) -> None:
    """Rows in pairs, or five at least: one row alone would be refused, and the worker not load."""
    spec = TensorSpec("x", "float32", ("n", 2))
    least = max(-(-low // step), 1) * step
    high = None if more is None else least + more
    contract = Contract(
        (spec,), (), ("m",), "", 20, "n", bounds={"n": (low, high)}, steps={"n": step}
    )
    assert contract.least_rows == least
    seen = set()

    def run(inputs: Arrays) -> Arrays:
        rows = len(inputs["x"])
        assert contract.takes_size("n", rows)
        seen.add(rows)
        return {}

    case = np.zeros((least * 2, 2), np.float32)
    found = pace.measure(run, contract, {"x": case})
    assert min(seen) == least
    assert len(seen) == 1 + (high is None or high >= 2 * least)
    assert found.alone_s > 0
