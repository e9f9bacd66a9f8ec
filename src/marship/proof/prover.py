"""One run of the proof in `rows`: compares rows run alone with rows run in batches."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from marship.contract import Array, Arrays, Contract
from marship.errors import ModelError
from marship.proof.comparison import RunModel
from marship.proof.rounding import column_sizes, gap_of, largest_float, limits_of, same
from marship.proof.rowsets import RowSet

NUDGES = (2.0**-22, -(2.0**-21), 2.0**-19)
"""Relative changes of an input to which a model should be insensitive."""
LARGEST_CALL_BYTES = 64 << 20
MANY_ROWS = 1025
"""Rows of the largest batch, to exceed a capacity for rows that a graph may have."""
LONGEST_MANY_S = 1.0
_COPIES = (2, 3, 4, 8)
FEWEST = 2
"""The number of rows that can be compared with each other."""


class InfluenceError(Exception):
    """Rows influence each other; its arguments are the reason and the difference."""

    def __init__(self, reason: str, absolute: float = np.inf, relative: float = np.inf) -> None:
        super().__init__(reason)
        self.reason, self.absolute, self.relative = reason, absolute, relative


@dataclass(slots=True)
class Alone:
    """A part with its outputs when run alone, and the allowed difference of each element.

    Attributes:
        part: The part.
        outputs: Its outputs.
        limits: The allowed differences, by output.
        usual: Whether the model certainly supports its values.
    """

    part: Arrays
    outputs: Arrays
    limits: Arrays
    usual: bool = False


@dataclass(slots=True)
class Prover:
    """One run of the proof.

    Attributes:
        contract: The model's contract.
        run: The function that runs the model.
        unit: Rows of a part.
        deadline: When to stop, in time of `time.perf_counter`.
        largest_rows: The batch's upper bound.
    """

    contract: Contract
    run: RunModel
    unit: int
    deadline: float
    largest_rows: int
    typical: Arrays = field(default_factory=dict)
    known: list[Alone] = field(default_factory=list)
    usual: int = 0
    usual_input: float = 0.0
    sets: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    largest_batch: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    alone_s: list[float] = field(default_factory=list)

    def try_set(self, rows: RowSet) -> list[Alone]:
        """Compare the rows of a set, batched and alone.

        Raises:
            InfluenceError: They influence each other.
        """
        alone = [found for part in rows.parts if (found := self._alone(part))]
        for one in alone:
            one.usual = rows.usual
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
        if rows.usual and not _is_empty(alone):
            self.usual += len(alone)
        return alone

    def try_batch(self, count: int, fresh: Iterator[Arrays]) -> None:
        """Run many parts in one call: those tried before, and new ones as needed.

        Raises:
            InfluenceError: They influence each other.
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
        """Run one large batch of rows that were tried before, and compare some of them.

        Raises:
            InfluenceError: They influence each other.
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

    def takes(self, part: Arrays) -> bool:
        """Whether the model runs on a part."""
        try:
            self.run(part)
        except ModelError:
            return False
        return True

    def joins(self, part: Arrays) -> bool:
        """Whether the model runs on several copies of a part."""
        counts = [count for count in _COPIES if count * self.unit <= self.largest_rows]
        copies = ({k: np.concatenate([v] * count) for k, v in part.items()} for count in counts)
        return any(self.takes(rows) for rows in copies)

    def _alone(self, part: Arrays) -> Alone | None:
        started = time.perf_counter()
        try:
            outputs = self.run(part)
        except ModelError:
            return None
        self.alone_s.append(time.perf_counter() - started)
        for spec in self.contract.outputs:
            if outputs[spec.name].shape[:1] != (self.unit,):
                raise InfluenceError(
                    f"{spec.name} has {_count(outputs[spec.name])} for {self.unit} of the inputs"
                )
        return Alone(part, outputs, {})

    def _note_typical(self, alone: Sequence[Alone], rows: RowSet) -> None:
        """Record the typical magnitude of each column of an output, from the first set."""
        for name in alone[0].outputs:
            if rows.usual and self.usual == 0:
                self.usual_input = max(largest_float(one.part) for one in alone)
            if name not in self.typical or (rows.usual and self.usual == 0):
                sizes = [column_sizes(one.outputs[name]) for one in alone]
                same = [size for size in sizes if size.shape == sizes[0].shape]
                self.typical[name] = np.median(np.stack(same), axis=0)

    def _limits(self, one: Alone) -> Arrays:
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

    def _together(self, group: Sequence[Alone], name: str, every: int = 1) -> None:
        """Run parts in one call, and compare each, or every n-th from the last one on."""
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
            raise InfluenceError(
                f"the model fails for a batch of {rows} rows, but not for single rows"
            ) from error
        for spec in self.contract.outputs:
            if outputs[spec.name].shape[:1] != (rows,):
                raise InfluenceError(
                    f"{spec.name} has {_count(outputs[spec.name])} for {rows} of the inputs "
                    f"({name})"
                )
        self.largest_batch = max(self.largest_batch, rows)
        return outputs

    def _cut(self, outputs: Arrays, place: int) -> Arrays:
        start = place * self.unit
        return {name: array[start : start + self.unit] for name, array in outputs.items()}

    def _difference(self, got: Arrays, one: Alone) -> InfluenceError | None:
        """Why a row differs between batched and alone; None if it does not.

        Where values are missing, NaN is no overflow, which may differ: others' values filled a gap.
        Nor is anything of usual values.
        """
        has_gaps = any(a.dtype.kind == "f" and np.isnan(a).any() for a in one.part.values())
        for name, want in one.outputs.items():
            found = got[name]
            if found.shape != want.shape:
                return InfluenceError(f"{name} has another shape together than alone")
            if want.dtype.kind not in "fc":
                if not np.array_equal(found, want):
                    return InfluenceError(f"{name} is another together than alone")
                continue
            gap, relative, over = gap_of(found, want, one.limits[name])
            if has_gaps and (np.isnan(want) & ~np.isnan(found)).any():
                return InfluenceError(f"{name} fills missing values from other rows")
            if one.usual and (~np.isfinite(want) & np.isfinite(found)).any():
                return InfluenceError(f"{name} has numbers together that it lacks alone")
            if over:
                return InfluenceError(
                    f"{name} is up to {gap:.2g} off where rows run together", gap, relative
                )
            self.absolute, self.relative = max(self.absolute, gap), max(self.relative, relative)
        return None

    def _is_rounding(
        self, group: Sequence[Alone], place: int, got: Arrays, problem: InfluenceError
    ) -> bool:
        """Whether a difference is due to rounding, which a model may amplify.

        Then other neighbours at the same batch size give equal outputs to the bit, and a change of
        the inputs' last digits alone causes a similar difference.
        """
        one = group[place]
        others = [other.part for i, other in enumerate(group) if i != place]
        for neighbours in (others[1:] + others[:1], [one.part] * len(others)):
            parts = [*neighbours[:place], one.part, *neighbours[place:]]
            again = self._cut(self._call(parts, "other neighbours"), place)
            if any(not same(again[name], got[name]) for name in got):
                return False
        return any(self._is_shaken(one, nudge, problem.absolute) for nudge in NUDGES)

    def _is_shaken(self, one: Alone, nudge: float, gap: float) -> bool:
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


def _is_empty(alone: Sequence[Alone]) -> bool:
    """Whether an output has no finite number, so that nothing was compared."""
    return any(
        array.dtype.kind in "fc" and not any(np.isfinite(one.outputs[name]).any() for one in alone)
        for name, array in alone[0].outputs.items()
    )


def _count(array: Array) -> str:
    return f"{len(array)} rows" if array.ndim else "no rows"


def _groupings(alone: Sequence[Alone]) -> Iterable[list[Alone]]:
    """All; all reversed and reordered; two and three of them."""
    whole = list(alone)
    yield whole
    yield whole[1::2] + whole[::2][::-1]
    yield whole[-2:]
    yield [whole[0], whole[-1]]
    yield whole[:3][::-1]
