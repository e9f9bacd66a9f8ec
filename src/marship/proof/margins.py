"""Tolerances widened to what rounding makes of golden cases, on other threads and processors."""

import math
from collections.abc import Sequence
from dataclasses import replace

from marship.contract import Arrays, Contract, GoldenCase
from marship.contract.tolerance import agree, largest_difference
from marship.proof.comparison import RunModel
from marship.proof.parity import OnnxRun, runner
from marship.proof.rounding import beyond_rounding

THREADS, ROUNDING_MARGIN = (2, 4), 3.0
"""Numbers of threads to compare with one, and the factor of what others, or other processors, may
make of it."""
_NO_ATOL = 1e-12
"""Stands for an absolute tolerance of 0, of which there are no multiples."""


def with_threads(
    contract: Contract, run: OnnxRun, golden: Sequence[GoldenCase]
) -> tuple[Contract, float]:
    """The contract with a tolerance that holds at any number of threads, and the difference.

    The rounding of a sum depends on how it is divided between threads. Where it decides about a
    step of a quantization, outputs differ by far more: by 0.07 in a model of int8 for text.
    """
    largest = 0.0
    widened = contract
    for threads in THREADS:
        other = runner(run.path, threads, run.libraries)
        for case in golden:
            got = other(case.inputs)
            if not agree(got, case.outputs, contract.tolerance):
                widened, gap = _widened(widened, got, case.outputs)
                largest = max(largest, gap)
    return widened, largest


def with_rounding(
    contract: Contract, reference: RunModel, candidate: RunModel, golden: Sequence[GoldenCase]
) -> Contract:
    """The contract with a tolerance that bears what rounding makes of golden cases."""
    widened, rtol = contract, contract.tolerance.rtol
    for case in golden if contract.tolerance.atol else ():
        got, want = candidate(case.inputs), case.outputs
        if agree(got, want, contract.tolerance):
            continue
        beyond = beyond_rounding(reference, case.inputs, got, want, rtol=rtol)
        if agree(beyond, want, contract.tolerance):
            widened, _ = _widened(widened, got, want)
    return widened


def _widened(contract: Contract, got: Arrays, want: Arrays) -> tuple[Contract, float]:
    """The contract with a tolerance of a multiple of these differences, and the largest one."""
    factors = dict(contract.tolerance.factors)
    atol, largest = contract.tolerance.atol or _NO_ATOL, 0.0
    for name, wanted in want.items():
        gap, _ = largest_difference({name: got[name]}, {name: wanted})
        if not math.isfinite(gap):
            continue  # whole numbers: no tolerance makes them right
        largest = max(largest, gap)
        factor = ROUNDING_MARGIN * gap / atol
        factors[name] = max(factors.get(name, 1.0), factor)
    tolerance = replace(contract.tolerance, atol=atol, factors=factors)
    return replace(contract, tolerance=tolerance), largest
