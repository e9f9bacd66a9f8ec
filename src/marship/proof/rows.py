"""The proof of batch invariance: rows of one call do not influence each other.

Rows that differ in value and in scale are run alone, and batched at several batch sizes, in several
orders and with different neighbours. Outputs must be equal up to rounding: the rounding of a matrix
product depends on the number of rows. Some facts follow from the graph: see
`marship.proof.operators`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from marship import profiles
from marship.contract import Arrays, Contract
from marship.proof.cases import DEFAULT_SIZE, allowed, shared_axis, sizes_to_try, with_an_empty_axis
from marship.proof.comparison import RowProof, RunModel
from marship.proof.prover import FEWEST, LARGEST_CALL_BYTES, InfluenceError, Prover
from marship.proof.rowsets import PARTS, USUAL, RowDrawer, RowSet

if TYPE_CHECKING:  # onnx takes a while to import
    from marship.proof.operators import Facts

PROOF_SECONDS = 60.0
LONGEST_CALL_S = 5.0
MOST_ROWS = 1100
SEED = 20
_MOST_REQUESTS, _MOST_SETS = 5, 4
_LONGEST, _MOST_PAST = 256, 4


def prove(
    contract: Contract,
    run: RunModel,
    examples: Arrays | None = None,
    *,
    facts: "Facts | None" = None,
    seconds: float = PROOF_SECONDS,
) -> RowProof | None:
    """Show that batched rows give the same outputs as alone, or why not.

    Args:
        contract: The contract, whose first axis is examined; `batch_axis` need not be set.
        run: The function that runs the model.
        examples: Real rows; synthetic ones are in their range, and far outside of it.
        facts: The graph's facts, if there is one; if it mixes rows, nothing is run.
        seconds: The time budget. The first set of rows is tried in any case; what is left out is
            listed in `left_out`.

    Returns:
        None if inputs and outputs do not share a variable first axis.
    """
    axis = shared_axis(contract)
    if axis is None:
        return None
    started = time.perf_counter()
    high = contract.bounds.get(axis, (1, None))[1]
    unit = max(allowed(contract, axis, 1), 1)
    prover = Prover(contract, run, unit, started + seconds, high or MOST_ROWS)
    drawer = RowDrawer(
        contract,
        examples,
        facts.constants if facts else (),
        prover.unit,
        np.random.default_rng(SEED),
    )
    difference = (0.0, 0.0)
    reason = "; ".join(facts.mixing if facts else ()) or None
    if reason is None and facts is not None:
        reason = _followed(contract, examples, facts, prover)
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


def _followed(
    contract: Contract, examples: Arrays | None, facts: "Facts", prover: Prover
) -> str | None:
    """Why rows influence each other by the graph, at the usual sizes and at others; or None."""
    if facts.follow is None:
        return None
    levels = sizes_to_try(contract, examples)
    others = [*levels[:1], *_past(contract, levels[-1], facts.constants)]
    for sizes in (levels[-1], *(one for one in others if one != levels[-1])):
        if sizes != levels[-1] and time.perf_counter() > prover.deadline:
            prover.left_out.append("following rows at other sizes: the time is over")
            break
        parts = _requests(contract, examples, prover, sizes)
        found = facts.follow(parts, is_usual=sizes == levels[-1])
        if not found and not parts and prover.joins(_fresh_part(contract, examples, prover, sizes)):
            found = ["the model runs requests together that it refuses alone"]
        if found:
            return "; ".join(found)
    return None


def _past(
    contract: Contract, sizes: Mapping[str, int], constants: Sequence[float]
) -> Iterator[dict[str, int]]:
    """Sizes past the graph's constants, which it may be compared with, and past the usual ones."""
    wanted = [2 * DEFAULT_SIZE]
    wanted += [int(one) for one in constants if one == int(one) and 1 < one < _LONGEST]
    for size in [*dict.fromkeys(wanted)][:_MOST_PAST]:
        yield {axis: allowed(contract, axis, size + 1) for axis in sizes}


def _requests(
    contract: Contract, examples: Arrays | None, prover: Prover, sizes: Mapping[str, int]
) -> Sequence[Arrays]:
    """A few requests that the model takes, as many as fit into a batch; real ones if possible."""
    drawer = RowDrawer(contract, examples, (), prover.unit, np.random.default_rng(SEED))
    most = min(_MOST_REQUESTS, prover.largest_rows // prover.unit)
    found: list[Arrays] = []
    for rows in islice(drawer.sets(sizes), _MOST_SETS):
        taken = [part for part in rows.parts if prover.takes(part)][:most]
        found = max(found, taken, key=len)
        if len(found) == most:
            break
    return found


def _fresh_part(
    contract: Contract, examples: Arrays | None, prover: Prover, sizes: Mapping[str, int]
) -> Arrays:
    drawer = RowDrawer(contract, examples, (), prover.unit, np.random.default_rng(SEED))
    return drawer.part(sizes, USUAL)


def _try_all(prover: Prover, drawer: RowDrawer) -> str | None:
    """Try all sets and batches within the time; why the proof failed, or None."""
    if prover.largest_rows < 2 * prover.unit:
        return f"no two requests fit into the batch's bound of {prover.largest_rows}"
    levels = sizes_to_try(prover.contract, drawer.examples)
    for number, rows in enumerate(drawer.sets(levels[-1])):
        if number and time.perf_counter() > prover.deadline:
            prover.left_out.append(f"{rows.name} and what follows: the time is over")
            break
        found = prover.try_set(rows)
        if not rows.cut:  # otherwise their size differs from that of new ones
            prover.known += found
    for sizes in [*levels[:-1], *with_an_empty_axis(prover.contract, levels[-1])]:
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
    """The numbers of parts to run in one call, besides the few of each set.

    The largest batch of single-row requests, and one more; twice that; and numbers near constants
    of the graph, which may be compared with the batch size.
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
