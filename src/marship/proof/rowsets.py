"""Test rows for the proof of batch invariance, different in value and in scale.

A part is the smallest possible request: one row, or as many as the batch's lower bound. The parts
of a set differ from each other, since equal rows prove nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.proof.cases import clipped, draw_real, first_axis, within

PARTS = 7
WORDS = ("text", "a", "", "Two words", "1", "0.5", "ä", "a much longer text than the others")
MOST_WORDS = 24
"""Of the graph's, that fill a row of their own."""
SMALL_WHOLE = 2
"""Without examples and range, integers start as 0 and 1, valid as masks and counts of any model."""


@dataclass(frozen=True, slots=True)
class RowSet:
    """Parts to run alone and batched.

    Attributes:
        name: A description of the set, for the evidence.
        parts: Inputs by name of each part.
        usual: Whether the model certainly supports such values. If not, parts on which the model
            fails, or outputs only rounding errors, are left out.
        cut: Whether they are smaller than requested, as the examples are.
    """

    name: str
    parts: Sequence[Arrays]
    usual: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """The distribution of a part's values.

    Attributes:
        kind: "usual", "whole" for rounded values, "flat" for one value everywhere.
        scale: Factor over the usual scale.
        sign: 0 for both signs, else 1 or -1.
        peak: The largest magnitude; None follows from the scale.
    """

    kind: str = "usual"
    scale: float = 1.0
    sign: int = 0
    peak: float | None = None


USUAL = Look()
FLAT = (Look("flat", 0.0), Look("flat", 1.0), Look("flat", -1.0))
FLAT_SCALES = (10.0, -10.0, 1e3, -1e3, 1e5, -1e5)


@dataclass(frozen=True, slots=True)
class RowDrawer:
    """Draws parts for a contract.

    Attributes:
        contract: The model's contract.
        examples: Real rows, whose range counts as usual; None without any.
        constants: Constants that the graph compares values with.
        unit: Rows of a part.
        generator: The random number generator.
    """

    contract: Contract
    examples: Arrays | None
    constants: Sequence[float]
    unit: int
    generator: np.random.Generator

    def sets(self, sizes: Mapping[str, int]) -> Iterator[RowSet]:
        """The sets of rows to try, the most informative first."""
        real = self._real(sizes)
        if real is not None:
            yield real
        yield self._set("usual values", sizes, [USUAL] * PARTS, usual=True)
        yield from self._with_gaps(sizes)
        scales = [10.0**power for power in (3, -3, 0, 1, -1, 2, -2)]
        yield self._set("scales from 0.001 to 1000", sizes, [Look(scale=s) for s in scales])
        yield self._special(sizes)
        yield self._set(
            "one extreme row", sizes, [Look(scale=1e6), *[USUAL] * (PARTS - 2), Look(scale=1e-6)]
        )
        flat = [Look("flat", scale) for scale in FLAT_SCALES]
        yield self._set("flat rows of all scales", sizes, [*flat, USUAL])
        looks = [Look("whole", s, sign) for s in (3.0, 30.0, 300.0) for sign in (1, -1)]
        yield self._set("whole numbers of either sign", sizes, [*looks, USUAL])
        yield from self._around_constants(sizes)
        yield from self._of_words(sizes)

    def _real(self, sizes: Mapping[str, int]) -> RowSet | None:
        """Rows of the examples, if two of them differ."""
        axis = first_axis(self.contract)
        if self.examples is None or axis is None:
            return None
        count = len(self.examples[self.contract.inputs[0].name])
        if count == 1:
            return None
        requested = {**sizes, axis: self.unit}
        cut = within(self.contract, requested, self.examples)
        starts = np.linspace(0, count, PARTS, endpoint=False).astype(int)
        parts = [
            draw_real(self.contract, self.examples, cut, int(start)).inputs for start in starts
        ]
        first = parts[0]
        differ = any(not np.array_equal(first[k], part[k]) for part in parts for k in first)
        return (
            RowSet("rows of the examples", parts, usual=True, cut=cut != requested)
            if differ
            else None
        )

    def _with_gaps(self, sizes: Mapping[str, int]) -> Iterator[RowSet]:
        """Rows without single values, and without whole columns, where values may be missing.

        A gap that is filled from other rows shows only beside rows that have the value.
        """
        names = [spec.name for spec in self.contract.inputs if spec.takes_missing]
        if not names:
            return
        parts = [self.part(sizes, USUAL) for _ in range(PARTS)]
        largest = max(parts[0][name].size for name in names)
        for place, part in zip(
            np.linspace(0, largest - 1, PARTS - 1).astype(int), parts[:-1], strict=True
        ):
            for name in names:
                part[name] = _without(part[name], np.arange(part[name].size) == place)
        yield RowSet("single missing values", parts)
        parts = [self.part(sizes, USUAL) for _ in range(PARTS)]
        for name in names:
            size = parts[0][name].size
            half, few = self.generator.random((2, size)) < ((0.5,), (0.2,))
            gaps = (np.ones(size, bool), half, ~half, few)
            for part, missing in zip(parts[:-1], (*gaps, half, few), strict=True):
                part[name] = _without(part[name], missing)
        yield RowSet("rows and columns of missing values", parts)

    def _special(self, sizes: Mapping[str, int]) -> RowSet:
        """Zeros, constant rows, equal rows, rows with padding."""
        same = self.part(sizes, USUAL)
        parts = [self.part(sizes, look) for look in FLAT]
        parts += [same, same, self._padded(self.part(sizes, USUAL)), self.part(sizes, USUAL)]
        return RowSet("zeros, flat rows and ties", parts)

    def _around_constants(self, sizes: Mapping[str, int]) -> Iterator[RowSet]:
        """Rows just below and just above the constants that the graph compares with."""
        for start in range(0, len(self.constants), 2):
            looks = [
                Look(peak=constant * factor)
                for constant in self.constants[start : start + 2]
                for factor in (0.5, 0.99, 1.0, 1.5)
            ]
            looks += [
                Look("flat", peak=constant * factor)
                for constant in self.constants[start : start + 2]
                for factor in (0.9, 1.1, -1.1, 100.0, -100.0)
            ]
            yield self._set("values around the graph's constants", sizes, [*looks, USUAL])

    def _of_words(self, sizes: Mapping[str, int]) -> Iterator[RowSet]:
        """Rows of one of the graph's words each, spread over its vocabularies."""
        from marship.proof.words import full_of, known_of

        known = [len(k.values) for spec in self.contract.inputs for k in known_of(spec)]
        count = min(max(known, default=0), MOST_WORDS)
        for start in range(0, count, PARTS - 1):
            parts = [self.part(sizes, USUAL)]
            for number in range(start, min(start + PARTS - 1, count)):
                part = self.part(sizes, USUAL)
                for spec in self.contract.inputs:
                    part[spec.name] = full_of(spec, part[spec.name], number / count)
                parts.append(part)
            yield RowSet("rows of the graph's words", parts)

    def _set(
        self, name: str, sizes: Mapping[str, int], looks: Sequence[Look], *, usual: bool = False
    ) -> RowSet:
        return RowSet(name, [self.part(sizes, look) for look in looks], usual=usual)

    def part(self, sizes: Mapping[str, int], look: Look) -> Arrays:
        """Inputs of one part with values of a distribution."""
        axis = first_axis(self.contract)
        inputs = {}
        for spec in self.contract.inputs:
            shape = [
                self.unit if name == axis else sizes[name] if isinstance(name, str) else name
                for name in spec.shape
            ]
            inputs[spec.name] = self._values(spec, shape, self._look_of(spec, look))
        return inputs

    def _look_of(self, spec: TensorSpec, look: Look) -> Look:
        """For possible masks usual values half the time, so that they do not hide the rest."""
        masks = spec.dtype == "bool" or (spec.dtype[:3] in ("int", "uin") and not spec.value_range)
        return USUAL if masks and len(self.contract.inputs) > 1 and self._coin() else look

    def _coin(self) -> bool:
        return bool(self.generator.integers(2))

    def _values(self, spec: TensorSpec, shape: list[int], look: Look) -> Array:
        from marship.proof.words import with_known

        values = self._alike(spec, shape, look)
        for column in spec.column_ranges:
            table = replace(spec, value_range=(column.low, column.high), column_ranges=())
            part = np.moveaxis(values, column.axis, 0)[column.place, ...]
            part[...] = self._index_values(table, list(part.shape), look)
        return with_known(spec, clipped(spec, values), self.generator)

    def _alike(self, spec: TensorSpec, shape: list[int], look: Look) -> Array:
        seen = None if self.examples is None else self.examples[spec.name].ravel()
        if spec.dtype == "str":
            words = np.asarray(WORDS if seen is None or seen.size == 0 else seen, dtype=object)
            return self.generator.choice(words, math.prod(shape)).reshape(shape)
        if spec.dtype == "bool":
            share = {"flat": float(look.scale > 0)}.get(look.kind, 0.1 if look.scale < 1 else 0.5)
            return self.generator.random(shape) < share
        if spec.value_range is not None:
            return self._index_values(spec, shape, look)
        if np.dtype(spec.dtype).kind in "iu":
            return self._whole_numbers(spec, shape, look, seen)
        most = float(np.finfo(spec.dtype).max)
        return self._numbers(shape, look, seen).clip(-most, most).astype(spec.dtype)

    def _index_values(self, spec: TensorSpec, shape: list[int], look: Look) -> Array:
        """Indices over the whole table, not the pad value unless it is the only one."""
        kind = np.iinfo(np.int64 if np.dtype(spec.dtype).kind == "f" else spec.dtype)
        low, high = spec.value_range or (0, 0)
        low, high = max(low, int(kind.min)), min(high, int(kind.max))
        values = self._indices(shape, look, low, high)
        if spec.pad_value is not None and low < high:
            values[values == spec.pad_value] = high if high != spec.pad_value else low
        return values.astype(spec.dtype)

    def _numbers(self, shape: list[int], look: Look, seen: Array | None) -> Array:
        """Normally distributed around the examples' mean, then scaled, float64."""
        centre, spread = 0.0, 1.0
        if seen is not None and np.isfinite(seen).any():
            finite = seen[np.isfinite(seen)].astype(np.float64)
            centre, spread = float(finite.mean()), float(finite.std())
        typical = abs(centre) + spread or 1.0
        if look.kind == "flat":
            return np.full(shape, look.scale * typical if look.peak is None else look.peak)
        spread = spread or typical
        values = look.scale * self.generator.normal(centre, spread, shape)
        if look.kind == "whole":
            values = np.round(values)
        if look.sign:
            values = look.sign * np.abs(values)
        if look.peak is not None and values.size:
            values = values * (look.peak / (np.abs(values).max() or 1.0))
            values.flat[self.generator.integers(values.size)] = look.peak
        return values

    def _whole_numbers(
        self, spec: TensorSpec, shape: list[int], look: Look, seen: Array | None
    ) -> Array:
        """Integers in the examples' range, scaled."""
        kind = np.iinfo(spec.dtype)
        low, high = self._usual_range(spec, seen)
        if look.kind == "flat":
            low = high = round(high * look.scale if look.peak is None else look.peak)
        elif look.peak is not None:
            low, high = sorted((0, round(look.peak)))
        else:
            low, high = round(low * max(look.scale, 1.0)), round(high * max(look.scale, 1.0))
        if look.sign < 0:
            low, high = -high, -low
        low, high = (int(np.clip(edge, kind.min, kind.max)) for edge in (low, high))
        return self.generator.integers(low, high, shape, dtype=spec.dtype, endpoint=True)

    def _indices(self, shape: list[int], look: Look, low: int, high: int) -> Array:
        """Uniform over the table, including both ends, int64; small scales stay near its start."""
        if look.kind == "flat":
            wanted = look.peak or (high if look.scale > 0 else low)
            return np.full(shape, int(np.clip(wanted, low, high)))
        last = high if look.scale >= 1 else low + int((high - low) * look.scale)
        if look.peak is not None:
            last = int(np.clip(look.peak, low, high))
        values = self.generator.integers(low, last, shape, endpoint=True)
        if values.size > 1:
            places = self.generator.choice(values.size, 2, replace=False)
            values.flat[places] = (low, last)
        elif values.size and look.peak is not None:
            values.flat[0] = last
        return values

    def _usual_range(self, spec: TensorSpec, seen: Array | None) -> tuple[int, int]:
        if seen is not None and seen.size:
            return int(seen.min()), int(seen.max())
        if np.dtype(spec.dtype).itemsize == 1:
            return 0, int(np.iinfo(spec.dtype).max)
        return 0, SMALL_WHOLE - 1

    def _padded(self, part: Arrays) -> Arrays:
        """The part with its right half padded, in all inputs with a pad value."""
        padded = {}
        for spec in self.contract.inputs:
            array = part[spec.name]
            if spec.pad_value is not None and array.ndim > 1:
                array = array.copy()
                array[:, (array.shape[1] + 1) // 2 :] = spec.pad_value
            padded[spec.name] = array
        return padded


def _without(array: Array, gaps: Array) -> Array:
    """The array with NaN at these places of all its values, in their order."""
    return np.where(gaps.reshape(array.shape), np.nan, array).astype(array.dtype)
