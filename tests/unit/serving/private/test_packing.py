"""Matrices as diagonals: what is done to slots gives what the matrix gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.private.phases import phased
from marship.serving.private.ckks import Ring
from marship.serving.private.packing import Packing, Product, product, summed
from marship.serving.private.plan import Affine, HePlan, Power

SLOTS = 64
SIZES = st.integers(1, 20)


def applied(product: Product, slots: np.ndarray) -> np.ndarray:
    """What a worker does with a ciphertext, on plain slots."""
    total, width = np.zeros_like(slots), product.giant or product.baby + 1
    for giant in range(product.giants, -1, -1):
        total = np.roll(total, -width)
        for baby in range(product.baby + 1):
            if (diagonal := product.diagonals.get(giant * width + baby)) is not None:
                total = total + diagonal * np.roll(slots, -baby)
    for step in product.sums:
        total = total + np.roll(total, -step)
    return total


def matrix_of(outputs: int, inputs: int, seed: int) -> np.ndarray:
    """Normal values."""
    return np.random.default_rng(seed).normal(size=(outputs, inputs))


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, st.integers(0, 99), st.sampled_from(["shifted", "repeated"]), st.booleans())
def test_a_product_is_the_matrix_product(
    inputs: int, outputs: int, seed: int, kind: str, once: bool
) -> None:
    """For all sizes, packed by shifts or repeated; repeated in all slots unless it is last."""
    matrix, x = matrix_of(outputs, inputs, seed), np.random.default_rng(seed).normal(size=inputs)
    packing = Packing.shifted(inputs, outputs, SLOTS)
    if kind == "repeated":
        packing = Packing(packing.period)
    found = applied(product(matrix, packing, SLOTS, once=once), packing.pack(x, SLOTS))
    assert found[:outputs] == pytest.approx(matrix @ x)
    if not once:
        period = 1 << (outputs - 1).bit_length()
        assert found == pytest.approx(np.tile(found[:period], SLOTS // period))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(0, 99))
def test_rows_may_be_summed_where_they_fit(inputs: int, outputs: int, seed: int) -> None:
    """One multiplication; the results stand as far apart as the vector is long."""
    matrix, x = matrix_of(outputs, inputs, seed), np.random.default_rng(seed).normal(size=inputs)
    packing = Packing(1 << (inputs - 1).bit_length())
    found = summed(matrix, packing, SLOTS)
    if found is None:
        return
    slots = applied(found, packing.pack(x, SLOTS))
    assert slots[: outputs * packing.period : packing.period] == pytest.approx(matrix @ x)


def test_what_is_last_leaves_slots_that_tell() -> None:
    """A single output does not stand in all slots, where it would be wrong unseen."""
    found = product(np.ones((1, 16)), Packing(16), SLOTS, once=True)
    slots = applied(found, Packing(16).pack(np.arange(16.0), SLOTS))
    assert slots[0] == pytest.approx(np.arange(16).sum())
    assert len(set(np.round(slots, 6))) > 2


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_phases_are_a_convolution_of_few_diagonals(stride: int, kernel: int) -> None:
    """As many diagonals as taps of one phase, and the same result."""
    side, channels = 9, 2
    made = (side - kernel) // stride + 1
    taps = np.random.default_rng(0).normal(size=(channels, kernel, kernel))
    matrix = np.zeros((channels, made, made, side, side))
    for c, y, x, i, j in np.ndindex(channels, made, made, kernel, kernel):
        matrix[c, y, x, y * stride + i, x * stride + j] = taps[c, i, j]
    matrix = matrix.reshape(channels * made * made, side * side)
    bias = np.arange(len(matrix), dtype=np.float64)
    last = matrix_of(3, len(matrix), 1)
    ring = Ring(4096, (40, 28, 28, 28, 40), 28)
    steps = (Affine({0: matrix}, bias), Power(1), Affine({2: last}, np.zeros(3)))
    plan = HePlan(ring, side * side, 3, steps)
    chosen = list(phased(plan, (1, side, side), (channels, made, made)))[stride - 1]
    rows = np.random.default_rng(2).normal(size=(4, side * side))
    assert chosen.compute(rows) == pytest.approx(plan.compute(rows))
    one = chosen.applied[0].products[0]
    assert len(one.diagonals) == (-(-kernel // stride)) ** 2
    slots = applied(one, chosen.packing.pack(rows[0], ring.slots))
    wanted = chosen.steps[0].matrices[0] @ rows[0]
    assert slots[: len(wanted)] == pytest.approx(wanted)
