"""The proof that rows of one call do not influence each other.

Rows that differ in value and in scale are run alone, and together at several batch sizes, in
several orders and beside different neighbours. Outputs must be the same but for rounding: what
a matrix product rounds depends on how many rows it has. A graph also says some of it itself:
see `marship.proof.operators`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from marship import profiles
from marship.contract import Arrays, Contract
from marship.proof.cases import shared_axis, sizes_to_try
from marship.proof.comparison import RowProof, RunModel
from marship.proof.prover import FEWEST, LARGEST_CALL_BYTES, InfluenceError, Prover
from marship.proof.rowsets import PARTS, USUAL, RowDrawer, RowSet

if TYPE_CHECKING:  # onnx takes a while to import
    from marship.proof.operators import Facts

PROOF_SECONDS = 60.0
LONGEST_CALL_S = 5.0
MOST_ROWS = 1100
SEED = 20


def prove(
    contract: Contract,
    run: RunModel,
    examples: Arrays | None = None,
    *,
    facts: "Facts | None" = None,
    seconds: float = PROOF_SECONDS,
) -> RowProof | None:
    """Show that rows run together give what they give alone, or why not.

    Args:
        contract: Its first axis is looked at; `batch_axis` need not be set.
        run: The way to run the model.
        examples: Real rows; drawn ones are of their range, and far beside it.
        facts: What the graph says, where there is one; where it mixes rows, nothing is run.
        seconds: What the proof may cost. The first set of rows is tried in any case; what is
            left out then stands in `left_out`.

    Returns:
        None where inputs and outputs do not share a variable first axis.
    """
    axis = shared_axis(contract)
    if axis is None:
        return None
    started = time.perf_counter()
    low, high = contract.bounds.get(axis, (1, None))
    prover = Prover(contract, run, max(low, 1), started + seconds, high or MOST_ROWS)
    drawer = RowDrawer(
        contract,
        examples,
        facts.constants if facts else (),
        prover.unit,
        np.random.default_rng(SEED),
    )
    difference = (0.0, 0.0)
    reason = "; ".join(facts.mixing if facts else ()) or None
    if reason is None:
        try:
            reason = _try_all(prover, drawer)
            difference = prover.absolute, prover.relative
        except InfluenceError as found:
            reason, difference = found.reason, (found.absolute, found.relative)
    else:
        difference = np.inf, np.inf
    return RowProof(
        "rows",
        {axis: prover.largest_batch},
        *difference,
        agrees=reason is None,
        reason=reason,
        sets=tuple(prover.sets),
        largest_batch=prover.largest_batch,
        left_out=tuple(prover.left_out),
        seconds=round(time.perf_counter() - started, 2),
    )


def _try_all(prover: Prover, drawer: RowDrawer) -> str | None:
    """Try sets and batches until all are, or time is over; why nothing is shown, or None."""
    if prover.largest_rows < 2 * prover.unit:
        return f"no two requests fit into the batch's bound of {prover.largest_rows}"
    levels = sizes_to_try(prover.contract, drawer.examples)
    for number, rows in enumerate(drawer.sets(levels[-1])):
        if number and time.perf_counter() > prover.deadline:
            prover.left_out.append(f"{rows.name} and what follows: the time is over")
            break
        found = prover.try_set(rows)
        if not rows.cut:  # else they are of another size than the fresh ones beside them
            prover.known += found
    for sizes in levels[:-1]:
        if time.perf_counter() < prover.deadline:
            looks = [USUAL] * PARTS
            name = "usual values, " + ", ".join(f"{k} {v}" for k, v in sizes.items())
            prover.try_set(RowSet(name, [drawer.part(sizes, look) for look in looks]))
    for count in _counts(prover, drawer.constants):
        if not _is_affordable(prover, count):
            prover.left_out.append(f"a batch of {count * prover.unit}: it would take too long")
            continue
        prover.try_batch(count, _fresh(drawer, levels[-1]))
    prover.try_many()
    if prover.usual < FEWEST:
        return "the model gives no stable outputs for usual values, so nothing can be shown"
    return None


def _fresh(drawer: RowDrawer, sizes: Mapping[str, int]) -> Iterator[Arrays]:
    while True:
        yield drawer.part(sizes, USUAL)


def _counts(prover: Prover, constants: Sequence[float]) -> list[int]:
    """How many parts to run in one call, beside the few of each set.

    What requests of one row can be joined to, and one more; twice that; and what lies about
    numbers in the graph, which may be compared with the batch's size.
    """
    joined = max(profile.batch_size for profile in profiles.PROFILES.values())
    wanted = {joined, joined + 1, 2 * joined + 1}
    for constant in constants:
        if constant == int(constant) and PARTS < constant < MOST_ROWS:
            wanted |= {int(constant), int(constant) + 1}
    most = prover.largest_rows // prover.unit
    return sorted({min(count, most) for count in wanted})


def _is_affordable(prover: Prover, count: int) -> bool:
    row_bytes = sum(array.nbytes for array in prover.known[0].part.values()) if prover.known else 1
    new = max(0, count - len(prover.known))
    part_s = float(np.median(prover.alone_s))
    call_s = part_s * count
    return (
        count * row_bytes <= LARGEST_CALL_BYTES
        and call_s <= LONGEST_CALL_S
        and time.perf_counter() + call_s + new * part_s <= prover.deadline
    )
