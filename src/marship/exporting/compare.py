"""Compares the exported file with the PyTorch model on many cases, within a time budget."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marship.contract import Arrays, Contract
from marship.errors import ModelError, ParityError
from marship.exporting.indices import run_within
from marship.exporting.layout import check_outputs
from marship.proof import parity
from marship.proof.cases import Case, draw_random, first_axis, sizes_to_try
from marship.proof.comparison import Comparison, RunModel
from marship.proof.rounding import beyond_rounding
from marship.proof.sizes import further_case, further_sizes, input_bytes

if TYPE_CHECKING:  # it imports torch
    from marship.exporting.guards import Doubt

SLACK = 2.0
"""Factor of a case's expected time over that of the largest so far, byte for byte."""


@dataclass(slots=True)
class Proof:
    """What was compared, and what was left out for time.

    Attributes:
        seed: Seed of sizes and values, which determines the cases.
        comparisons: The comparisons; those not within the tolerance differ by rounding, as
            PyTorch's own outputs do where the inputs' last digits change.
        left_out: Sizes of cases that were left out for time.
        not_finite: Cases with values so large that PyTorch's own outputs are not finite.
        unequal: By integer output, the number of wide cases in which it differed: mostly ties.
    """

    seed: int
    comparisons: list[Comparison] = field(default_factory=list)
    left_out: list[Mapping[str, int]] = field(default_factory=list)
    not_finite: int = 0
    unequal: dict[str, int] = field(default_factory=dict)


class OpsetError(ModelError):
    """The file cannot be made, loaded or run with this operator set; with another it may.

    Attributes:
        is_of_runtime: Whether ONNX Runtime refused it, not the exporter.
    """

    is_of_runtime = True


class NotConvertedError(OpsetError):
    """torch.onnx.export cannot convert a traced model with this operator set."""

    is_of_runtime = False


def open_run(path: Path) -> RunModel:
    """A function that runs the exported file.

    Raises:
        OpsetError: It cannot be loaded.
    """
    try:
        return parity.runner(path)
    except ModelError as error:
        raise OpsetError(str(error)) from error


def _run(sides: "Sides", inputs: Arrays) -> Arrays:
    try:
        return sides.candidate(inputs)
    except ModelError as error:
        raise OpsetError(str(error)) from error


def entry(
    proof: Proof, contract: Contract, proofs: Mapping[str, Comparison | None]
) -> dict[str, Any]:
    """The content of `parity.json`; `proofs` are those about rows and padding."""
    return {
        "tolerance": asdict(contract.tolerance),
        "largest_difference": {
            "absolute": max(found.absolute for found in proof.comparisons),
            "relative": max(found.relative for found in proof.comparisons),
        },
        "batch_axis": contract.batch_axis,
        "rows_alone_and_together": _evidence(proofs["rows"]),
        "rows_padded_and_not": _evidence(proofs["padding"]),
        "seed": proof.seed,
        "cases": [asdict(found) for found in proof.comparisons],
        "cases_left_out": [dict(sizes) for sizes in proof.left_out],
        "cases_not_finite": proof.not_finite,
        "cases_of_rounding": _rounded(proof),
        "unequal_at_extreme_values": proof.unequal,
        "digest": contract.digest,
        "opset": contract.opset,
    }


def _rounded(proof: Proof) -> int:
    return sum(not found.agrees for found in proof.comparisons)


def _evidence(found: Comparison | None) -> dict[str, Any] | str:
    if found is None:
        return "not applicable"
    apart = math.isinf(found.absolute)
    return asdict(found) | ({"absolute": None, "relative": None} if apart else {})


def remarks(proof: Proof, contract: Contract) -> list[str]:
    """Remarks about the result, one line each."""
    lines = [
        f"output {name} is small: it is compared within {contract.tolerance.absolute(name):.2g}."
        for name, factor in contract.tolerance.factors.items()
        if factor < 1
    ]
    if proof.left_out:
        lines.append(
            f"{len(proof.left_out)} comparisons at other sizes were left out for time; "
            "a larger --proof-seconds makes them."
        )
    if rounded := _rounded(proof):
        lines.append(
            f"{rounded} comparisons are beyond the tolerance by rounding alone: the model's own "
            "outputs in PyTorch change as much with the last digits of its inputs."
        )
    lines += [
        f"output {name} differs in {count} cases of extreme values; that may be ties."
        for name, count in proof.unequal.items()
    ]
    return lines


@dataclass(frozen=True, slots=True)
class Sides:
    """The PyTorch model and the ONNX file, with what is known about them."""

    reference: RunModel
    candidate: RunModel
    contract: Contract
    examples: Arrays
    doubts: "Sequence[Doubt]" = ()


def compare_one(sides: Sides, case: Case, want: Arrays) -> Comparison:
    """Compare the file's outputs for a case with `want`, PyTorch's.

    Raises:
        ParityError: Not within the tolerance, by more than rounding; the message has the output,
            case and likely cause.
        OpsetError: The file fails on the case.
        ModelError: Its outputs have other shapes than declared.
    """
    contract = sides.contract
    got = _run(sides, case.inputs)
    check_outputs(contract, case.sizes, got)
    found = parity.compare(want, got, case, contract.tolerance)
    if not found.agrees:
        rtol = contract.tolerance.rtol
        beyond = beyond_rounding(sides.reference, case.inputs, got, want, rtol=rtol)
        if not parity.compare(want, beyond, case, contract.tolerance).agrees:
            raise ParityError(_mismatch(sides, case, want, beyond))
    return found


def check_ranks(results: Sequence[tuple[Case, Arrays]]) -> None:
    """Reject a model whose outputs have a different rank at some sizes.

    Raises:
        ModelError: An output's rank changes.
    """
    first, outputs = results[0]
    for case, other in results:
        for name, array in other.items():
            if array.ndim != outputs[name].ndim:
                raise ModelError(
                    f"output {name} must have one rank for all sizes, got "
                    f"{list(outputs[name].shape)} for {first} and {list(array.shape)} for {case}. "
                    "Give squeeze() the axis that it is to remove, as squeeze(-1)."
                )


def compare_further(sides: Sides, proof: Proof, until: float) -> None:
    """Compare at doubtful sizes, edges and random sizes until the time is used up.

    Args:
        sides: The two models to compare.
        proof: Collects the results.
        until: Deadline of time.perf_counter; doubtful sizes are compared in any case.

    Raises:
        ParityError: As compare_one.
        ModelError: As compare_one.
    """
    for drawn in _doubtful(sides, proof.seed):
        case, want = run_within(sides.reference, drawn, sides.contract, sides.examples)
        proof.comparisons.append(compare_one(sides, case, want))
    largest_bytes, largest_s = 1, 0.0
    planned = further_sizes(sides.contract, sides.examples, proof.seed)
    for number, (kind, sizes) in enumerate(planned):
        size_bytes = input_bytes(sides.contract, sizes)
        started = time.perf_counter()
        if started + SLACK * largest_s * size_bytes / largest_bytes > until:
            proof.left_out.append(sizes)
            continue
        case = further_case(sides.contract, sides.examples, kind, sizes, proof.seed + number)
        _compare_case(sides, case, proof)
        if size_bytes >= largest_bytes:
            largest_bytes, largest_s = size_bytes, time.perf_counter() - started


def _doubtful(sides: Sides, seed: int) -> Iterable[Case]:
    """Cases at the sizes that a guard excludes."""
    contract, batch = sides.contract, first_axis(sides.contract)
    for doubt in sides.doubts:
        for size in sorted(doubt.sizes):
            for level in sizes_to_try(contract, sides.examples):
                sizes = ({batch: 2} if batch else {}) | level | {doubt.axis: size}
                yield draw_random(contract, sides.examples, sizes, seed)


def _compare_case(sides: Sides, case: Case, proof: Proof) -> None:
    case, want = run_within(sides.reference, case, sides.contract, sides.examples)
    if case.kind != "wide":
        proof.comparisons.append(compare_one(sides, case, want))
        return
    floats = {k: v for k, v in want.items() if v.dtype.kind in "fc"}
    if not all(np.isfinite(v).all() for v in floats.values()):
        proof.not_finite += 1
        return
    got = _run(sides, case.inputs)
    for name in want.keys() - floats.keys():
        if not np.array_equal(got[name], want[name]):
            proof.unequal[name] = proof.unequal.get(name, 0) + 1
    proof.comparisons.append(compare_one(sides, case, {**got, **floats}))


def _mismatch(sides: Sides, case: Case, want: Arrays, got: Arrays) -> str:
    tolerance = sides.contract.tolerance
    apart = {name: parity.compare({name: want[name]}, got, case, tolerance) for name in want}
    name, found = next((n, c) for n, c in apart.items() if not c.agrees)
    places = [
        f" torch assumed otherwise at {doubt.place}."
        for doubt in sides.doubts
        if case.sizes.get(doubt.axis) in doubt.sizes and doubt.place
    ]
    return (
        f"ONNX Runtime's outputs must be within {tolerance} of PyTorch's, got output {name} "
        f"{found.absolute:.3g} apart (relative {found.relative:.3g}) for {case}.{''.join(places)} "
        "Look for branches on sizes and values in forward, or state a wider --atol or --rtol."
    )
