"""The proof that rows of one call do not influence each other.

Rows that differ in value and in scale are run alone, and together at several batch sizes, in
several orders and beside different neighbours. Outputs must be the same but for rounding: what
a matrix product rounds depends on how many rows it has. A graph also says some of it itself:
see `marship.proof.operators`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from marship import profiles
from marship.contract import Array, Arrays, Contract
from marship.errors import ModelError
from marship.proof.cases import shared_axis, sizes_to_try
from marship.proof.comparison import RowProof, RunModel
from marship.proof.rounding import column_sizes, gap_of, largest_float, limits_of, same
from marship.proof.rowsets import PARTS, USUAL, RowDrawer, RowSet

if TYPE_CHECKING:  # onnx takes a while to import
    from marship.proof.operators import Facts

PROOF_SECONDS = 60.0
NUDGES = (2.0**-22, -(2.0**-21), 2.0**-19)
"""Relative changes of an input that no model should make much of."""
LARGEST_CALL_BYTES = 64 << 20
LONGEST_CALL_S = 5.0
MOST_ROWS = 1100
MANY_ROWS = 1025
"""Of the largest batch, in which a capacity for rows that a graph may have is exceeded."""
LONGEST_MANY_S = 1.0
FEWEST = 2
"""Rows that can be held against each other."""
SEED = 20


class _InfluenceError(Exception):
    """Rows influence each other; its arguments are the reason and the difference."""

    def __init__(self, reason: str, absolute: float = np.inf, relative: float = np.inf) -> None:
        super().__init__(reason)
        self.reason, self.absolute, self.relative = reason, absolute, relative


@dataclass(slots=True)
class _Alone:
    """A part with its own outputs, and how far each of their elements may be off."""

    part: Arrays
    outputs: Arrays
    limits: Arrays


@dataclass(slots=True)
class _Prover:
    """One run of the proof.

    Attributes:
        contract: What the model takes and gives.
        run: The way to run it.
        unit: Rows of a part.
        deadline: When to leave out the rest, as `time.perf_counter` tells it.
        largest_rows: The batch's upper bound.
    """

    contract: Contract
    run: RunModel
    unit: int
    deadline: float
    largest_rows: int
    typical: Arrays = field(default_factory=dict)
    known: list[_Alone] = field(default_factory=list)
    usual: int = 0
    usual_input: float = 0.0
    sets: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    largest_batch: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    alone_s: list[float] = field(default_factory=list)

    def try_set(self, rows: RowSet) -> list[_Alone]:
        """Hold the rows of a set against each other.

        Raises:
            _InfluenceError: They influence each other.
        """
        alone = [found for part in rows.parts if (found := self._alone(part))]
        refused = len(rows.parts) - len(alone)
        if refused:
            self._note(
                f"{refused} of {len(rows.parts)} rows of {rows.name}: the model refuses them"
            )
        if len(alone) < FEWEST:
            return []
        self._note_typical(alone, rows)
        for one in alone:
            one.limits = self._limits(one)
        for group in _groupings(alone):
            if len(group) * self.unit <= self.largest_rows:
                self._together(group, rows.name)
        if rows.name not in self.sets:
            self.sets.append(rows.name)
        if rows.usual:
            self.usual += len(alone)
        return alone

    def try_batch(self, count: int, fresh: Iterator[Arrays]) -> None:
        """Run many parts in one call: those tried before, and new ones as far as needed.

        Raises:
            _InfluenceError: They influence each other.
        """
        name = f"a batch of {count * self.unit}"
        alone = list(self.known[:count])
        while len(alone) < count:
            found = self._alone(next(fresh))
            if found is None:
                self.left_out.append(f"{name}: the model refuses a row")
                return
            found.limits = self._limits(found)
            alone.append(found)
        self.known = alone if len(alone) > len(self.known) else self.known
        self._together(alone[::-1], name)

    def try_many(self) -> None:
        """Run one large batch of rows that were tried before, and compare a part of them.

        Raises:
            _InfluenceError: They influence each other.
        """
        if len(self.known) < FEWEST:
            return
        one = self.known[0]
        part_bytes = sum(array.nbytes for array in (*one.part.values(), *one.outputs.values()))
        count = min(
            min(MANY_ROWS, self.largest_rows) // self.unit,
            LARGEST_CALL_BYTES // max(part_bytes, 1),
            int(LONGEST_MANY_S / float(np.median(self.alone_s))),
        )
        if count * self.unit > self.largest_batch and time.perf_counter() < self.deadline:
            group = [self.known[place % len(self.known)] for place in range(count)]
            self._together(group, f"a batch of {count * self.unit}", every=11)

    def _alone(self, part: Arrays) -> _Alone | None:
        started = time.perf_counter()
        try:
            outputs = self.run(part)
        except ModelError:
            return None
        self.alone_s.append(time.perf_counter() - started)
        for spec in self.contract.outputs:
            if outputs[spec.name].shape[:1] != (self.unit,):
                raise _InfluenceError(
                    f"{spec.name} has {_count(outputs[spec.name])} for {self.unit} of the inputs"
                )
        return _Alone(part, outputs, {})

    def _note_typical(self, alone: Sequence[_Alone], rows: RowSet) -> None:
        """The usual size of each column of an output, the first set's to be on the safe side."""
        for name in alone[0].outputs:
            if rows.usual and self.usual == 0:
                self.usual_input = max(largest_float(one.part) for one in alone)
            if name not in self.typical or (rows.usual and self.usual == 0):
                sizes = [column_sizes(one.outputs[name]) for one in alone]
                same = [size for size in sizes if size.shape == sizes[0].shape]
                self.typical[name] = np.median(np.stack(same), axis=0)

    def _limits(self, one: _Alone) -> Arrays:
        limits = {}
        least = max(largest_float(one.part), self.usual_input)
        for name, array in one.outputs.items():
            if array.dtype.kind not in "fc":
                continue
            own = column_sizes(array)
            typical = self.typical[name]
            if typical.shape == own.shape:
                own = np.maximum(own, 0.1 * typical)
            limits[name] = limits_of(own, least, half=array.dtype == np.float16)
        return limits

    def _together(self, group: Sequence[_Alone], name: str, every: int = 1) -> None:
        """Run parts in one call, and compare each, or every so many from the last one on."""
        outputs = self._call([one.part for one in group], name)
        for place in range(len(group) - 1, -1, -every):
            one = group[place]
            got = self._cut(outputs, place)
            problem = self._difference(got, one)
            if problem is None:
                continue
            if self._is_rounding(group, place, got, problem):
                self._note(f"a row of {name}: rounding alone changes its outputs")
                continue
            raise problem

    def _call(self, parts: Sequence[Arrays], name: str) -> Arrays:
        inputs = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        rows = len(parts) * self.unit
        try:
            outputs = self.run(inputs)
        except ModelError as error:
            raise _InfluenceError(f"{rows} rows together are refused, each alone is not") from error
        for spec in self.contract.outputs:
            if outputs[spec.name].shape[:1] != (rows,):
                raise _InfluenceError(
                    f"{spec.name} has {_count(outputs[spec.name])} for {rows} of the inputs "
                    f"({name})"
                )
        self.largest_batch = max(self.largest_batch, rows)
        return outputs

    def _cut(self, outputs: Arrays, place: int) -> Arrays:
        start = place * self.unit
        return {name: array[start : start + self.unit] for name, array in outputs.items()}

    def _difference(self, got: Arrays, one: _Alone) -> "_InfluenceError | None":
        """Why a row is another together than alone; None where it is the same."""
        for name, want in one.outputs.items():
            found = got[name]
            if found.shape != want.shape:
                return _InfluenceError(f"{name} has another shape together than alone")
            if want.dtype.kind not in "fc":
                if not np.array_equal(found, want):
                    return _InfluenceError(f"{name} is another together than alone")
                continue
            gap, relative, over = gap_of(found, want, one.limits[name])
            if over:
                return _InfluenceError(
                    f"{name} is up to {gap:.2g} off where rows run together", gap, relative
                )
            self.absolute, self.relative = max(self.absolute, gap), max(self.relative, relative)
        return None

    def _is_rounding(
        self, group: Sequence[_Alone], place: int, got: Arrays, problem: _InfluenceError
    ) -> bool:
        """Whether a difference comes of rounding, which a model may blow up.

        Then other neighbours at the same size give the same to the bit, and the model alone
        makes as much of a change of its inputs in their last digits.
        """
        one = group[place]
        others = [other.part for i, other in enumerate(group) if i != place]
        for neighbours in (others[1:] + others[:1], [one.part] * len(others)):
            parts = [*neighbours[:place], one.part, *neighbours[place:]]
            again = self._cut(self._call(parts, "other neighbours"), place)
            if any(not same(again[name], got[name]) for name in got):
                return False
        return any(self._is_shaken(one, nudge, problem.absolute) for nudge in NUDGES)

    def _is_shaken(self, one: _Alone, nudge: float, gap: float) -> bool:
        nudged = {
            name: (array * (1 + nudge)).astype(array.dtype) if array.dtype.kind == "f" else array
            for name, array in one.part.items()
        }
        if all(same(nudged[name], array) for name, array in one.part.items()):
            return False
        try:
            outputs = self.run(nudged)
        except ModelError:
            return False
        problem = self._difference(outputs, one)
        return problem is not None and (problem.absolute >= gap / 4 or np.isinf(gap))

    def _note(self, text: str) -> None:
        if text not in self.left_out:
            self.left_out.append(text)


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
    prover = _Prover(contract, run, max(low, 1), started + seconds, high or MOST_ROWS)
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
        except _InfluenceError as found:
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


def _try_all(prover: _Prover, drawer: RowDrawer) -> str | None:
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


def _counts(prover: _Prover, constants: Sequence[float]) -> list[int]:
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


def _is_affordable(prover: _Prover, count: int) -> bool:
    row_bytes = sum(array.nbytes for array in prover.known[0].part.values()) if prover.known else 1
    new = max(0, count - len(prover.known))
    part_s = float(np.median(prover.alone_s))
    call_s = part_s * count
    return (
        count * row_bytes <= LARGEST_CALL_BYTES
        and call_s <= LONGEST_CALL_S
        and time.perf_counter() + call_s + new * part_s <= prover.deadline
    )


def _groupings(alone: Sequence[_Alone]) -> Iterable[list[_Alone]]:
    """All together; backwards with each beside others; two and three of them."""
    whole = list(alone)
    yield whole
    yield whole[1::2] + whole[::2][::-1]
    yield whole[-2:]
    yield [whole[0], whole[-1]]
    yield whole[:3][::-1]


def _count(array: Array) -> str:
    return f"{len(array)} rows" if array.ndim else "no rows"
