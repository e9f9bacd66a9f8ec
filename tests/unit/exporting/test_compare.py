"""exporting.compare and proof.sizes: what is tried within which time, and what is found."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from marship.contract import Arrays, Contract, TensorSpec
from marship.contract.tolerance import Tolerance
from marship.errors import ParityError
from marship.exporting.compare import Proof, Sides, compare_further, entry
from marship.exporting.guards import Doubt
from marship.proof.sizes import MOST_BYTES, further_case, further_sizes, input_bytes

PICTURE = TensorSpec("picture", "float32", ("batch", "h", "w"))
TOTAL = TensorSpec("total", "float32", ("batch",))


def contract(high: int = 20, low: int = 1) -> Contract:
    """A contract over pictures of independent height and width."""
    return Contract((PICTURE,), (TOTAL,), (), "", 23, bounds={"h": (low, high), "w": (low, high)})


def examples(high: int = 20) -> Arrays:
    """Three pictures of values of both signs."""
    values = np.random.default_rng(0).standard_normal((3, high, high))
    return {"picture": values.astype(np.float32)}


def total(inputs: Arrays) -> Arrays:
    """The right output at every size."""
    return {"total": inputs["picture"].sum(axis=(1, 2))}


def sides(candidate, **more) -> Sides:  # noqa: ANN001, ANN003  any way to run
    """A candidate to compare with `total`."""
    return Sides(total, candidate, contract(), examples(), **more)


def proven(candidate, seed: int = 0, seconds: float = 60, **more) -> Proof:  # noqa: ANN001, ANN003
    """The proof of a candidate."""
    proof = Proof(seed)
    compare_further(sides(candidate, **more), proof, time.perf_counter() + seconds)
    return proof


def wrong_where(condition):  # noqa: ANN001, ANN201
    """A candidate that is off at the sizes b, h and w where a condition holds."""

    def run(inputs: Arrays) -> Arrays:
        sizes = SimpleNamespace(**dict(zip("bhw", inputs["picture"].shape, strict=True)))
        return {"total": total(inputs)["total"] + condition(sizes)}

    return run


@pytest.mark.parametrize(
    "condition",
    [
        lambda s: s.h % 2 == 1,
        lambda s: s.h % 4 != 0,
        lambda s: s.h in (2, 3, 5, 7, 11, 13, 17, 19),
        lambda s: s.h in (2, 4, 8, 16),
        lambda s: s.h != s.w,
        lambda s: s.h == 19,
        lambda s: s.w == 2,
        lambda s: s.b == 63,
        lambda s: s.b == 64,
        lambda s: s.b == 65,
        lambda s: s.b > 7,
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 123456789])
def test_a_candidate_that_is_wrong_at_some_sizes_is_found(condition, seed: int) -> None:  # noqa: ANN001
    """Odd, prime and power-of-two sizes, neighbours, unequal axes and large batches."""
    with pytest.raises(ParityError, match="output total 1 apart"):
        proven(wrong_where(condition), seed)


def test_the_seed_repeats_a_proof_and_another_tries_other_sizes() -> None:
    """parity.json states it."""
    first, again, other = (list(further_sizes(contract(), examples(), s)) for s in (1, 1, 2))
    assert first == again != other


def test_what_there_is_no_time_for_is_left_out_and_reported() -> None:
    """A slow candidate ends with the time, its sizes in doubt are tried in any case."""
    assert not proven(total).left_out
    tried = proven(total, seconds=0, doubts=[Doubt("h", frozenset({3}), None)])
    assert {found.sizes["h"] for found in tried.comparisons} == {3}
    assert len(tried.left_out) > 20


def test_the_largest_comparison_is_not_begun_without_time_for_it() -> None:
    """Each is expected to take as long as the largest so far, byte for byte."""
    slept = []

    def slow(inputs: Arrays) -> Arrays:
        slept.append(inputs["picture"].nbytes)
        time.sleep(inputs["picture"].nbytes * 1e-5)  # a slow model
        return total(inputs)

    started = time.perf_counter()
    proof = proven(slow, seconds=0.5)
    assert time.perf_counter() - started < 1
    assert proof.left_out
    assert slept


def test_a_batch_is_no_larger_than_memory_allows() -> None:
    """Inputs of one case stay within a bound, whatever the batch's bounds are."""
    large = contract(2000)
    for _, sizes in further_sizes(large, examples(2000), 0):
        assert sizes["batch"] == 1 or input_bytes(large, sizes) <= MOST_BYTES


def test_wide_values_cover_magnitudes_signs_zeros_and_ties() -> None:
    """Rows are from thousandths to hundreds of what the examples hold."""
    sizes = {"batch": 10, "h": 20, "w": 20}
    values = further_case(contract(), examples(), "wide", sizes, 0).inputs["picture"]
    largest = np.abs(values).max(axis=(1, 2))
    assert math.log10(largest.max() / largest.min()) > 4
    assert (values == 0).mean() > 0.05
    assert (values < 0).any()
    assert (values > 0).any()
    assert (values[..., 0] == values[..., -1]).mean() > 0.7


def test_wide_values_keep_to_the_sign_of_the_examples() -> None:
    """What has no negative values need not take them."""
    positive = {"picture": np.abs(examples()["picture"])}
    sizes = {"batch": 5, "h": 4, "w": 4}
    assert (further_case(contract(), positive, "wide", sizes, 0).inputs["picture"] >= 0).all()


def cancelled(inputs: Arrays, dtype: type, share: float = 0.0) -> Arrays:
    """A mean beside large terms that cancel in the ties of wide rows."""
    x = inputs["picture"].astype(dtype)
    weight = dtype(1000)
    mean = x.mean(axis=(1, 2)) * dtype(1 + share)
    total = (weight * x[:, 0, 0] + mean) - weight * x[:, 0, -1]
    return {"total": total.astype(np.float32)}


@pytest.mark.parametrize("seed", range(5))
def test_rounding_of_wide_rows_is_told_from_wrong_values(seed: int) -> None:
    """Float32 is off by a share of the terms that cancel; a mean 5 per cent off is wrong."""
    scaled = replace(contract(), tolerance=Tolerance(factors={"total": 1.0}))

    def compared(share: float) -> Proof:
        def exact(inputs: Arrays) -> Arrays:
            return cancelled(inputs, np.float64, share)

        both = Sides(lambda inputs: cancelled(inputs, np.float32), exact, scaled, examples())
        proof = Proof(seed)
        compare_further(both, proof, time.perf_counter() + 60)
        return proof

    assert entry(compared(0.0), scaled, {"rows": None, "padding": None})["cases_of_rounding"] > 0
    with pytest.raises(ParityError, match="output total"):
        compared(0.05)
