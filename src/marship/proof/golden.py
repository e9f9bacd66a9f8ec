"""Golden cases: the calls that every worker replays before it serves.

They are stored in the archive, so by default their inputs are synthetic: values over the range of
the examples, indices over the whole table, rows of different length. The only facts kept of the
examples are the range of numbers, and the values of inputs with few distinct ones, such as ratings
of 1 to 5. Real rows are only used on request.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.errors import PackageError, UsageError
from marship.proof.cases import (
    Case,
    batches,
    clipped,
    draw_real,
    first_axis,
    sizes_to_try,
    with_an_empty_axis,
    within,
)
from marship.proof.rowsets import WORDS

SYNTHETIC, REAL = "synthetic", "real"
KINDS = (SYNTHETIC, REAL)
MOST_CATEGORIES = 16
LEAST_REPEATS = 16
"""An input with so few distinct values, each so frequent on average, is categorical."""
LEAST_ROWS = 16
"""With so many rows or more, each column of a table has its own range."""
PATCH = 8
"""Synthetic images have patches of this size, as real images are smooth."""
PICTURE_AXES = 4
FAINT = 0.1


def check_kind(kind: str) -> None:
    """Check the kind of golden cases.

    Raises:
        UsageError: It is unknown.
    """
    if kind not in KINDS:
        raise UsageError(f"golden must be one of {', '.join(KINDS)}, got {kind!r}.")


def check_found(found: str, wanted: str, run_dir: Path, *, is_export: bool = True) -> None:
    """Check that a folder's golden cases are of the wanted kind: real rows only on request.

    Args:
        found: The kind that they are of.
        wanted: The kind that was asked for.
        run_dir: The folder.
        is_export: Whether they come from an export, and not from an ONNX file.

    Raises:
        PackageError: They differ.
    """
    if found != wanted:
        again = "Optimize the ONNX file again with"
        if is_export:
            again = f"Export again: marship export {run_dir}"
        keep = ", or pack them with --golden real" if found == REAL else ""
        raise PackageError(
            f"golden cases of {run_dir} must be {wanted}, got {found}. "
            f"{again} --golden {wanted}{keep}."
        )


def draw_golden(
    contract: Contract, examples: Arrays | None, kind: str = SYNTHETIC
) -> Iterator[Case]:
    """Inputs at batch 1, 2 and 7, or without a batch 3, and at different sizes of the other axes.

    And with each axis empty that may be.

    Raises:
        UsageError: Real ones are wanted, and there are no examples.
    """
    check_kind(kind)
    if kind == REAL and examples is None:
        raise UsageError(
            "golden must be synthetic without example rows, got real. Export from a run folder, or "
            "give some: --example inputs.npz."
        )
    levels = sizes_to_try(contract, examples)
    rows = batches(contract)
    tried = [
        rows[seed % len(rows)] | levels[(len(levels) // 2 + seed) % len(levels)]
        for seed in range(max(len(rows), len(levels) if rows == [{}] else 0))
    ]
    tried += with_an_empty_axis(contract, tried[0])
    for seed, sizes in enumerate(tried):
        if kind == REAL and examples is not None:
            yield draw_real(contract, examples, within(contract, sizes, examples), seed)
        else:
            yield draw_synthetic(contract, examples, sizes, seed)


def draw_synthetic(
    contract: Contract, examples: Arrays | None, sizes: Mapping[str, int], seed: int
) -> Case:
    """Synthetic inputs that cover the model's input range."""
    generator = np.random.default_rng([seed, len(sizes)])
    batch = first_axis(contract)
    inputs = {}
    for spec in contract.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        seen = None if examples is None else examples[spec.name]
        inputs[spec.name] = _Drawer(spec, seen, generator).values(shape)
    if batch is not None:
        _pad_rows(contract, inputs, generator)
    return Case(SYNTHETIC, sizes, inputs)


def _pad_rows(contract: Contract, inputs: Arrays, generator: np.random.Generator) -> None:
    """Pad the ends of all rows except the first, to the same length in each input."""
    padded = [spec for spec in contract.inputs if spec.pad_value is not None]
    axes = {a: None for s in padded for a in s.shape[1:] if isinstance(a, str)}
    for axis in axes:
        places = {spec.name: spec.shape.index(axis) for spec in padded if axis in spec.shape}
        name, place = next(iter(places.items()))
        rows, size = inputs[name].shape[0], inputs[name].shape[place]
        for row in range(1, rows):
            length = int(generator.integers(1, size + 1)) if size else 0
            for spec in padded:
                if spec.name in places:
                    cut = [slice(None)] * inputs[spec.name].ndim
                    cut[0], cut[places[spec.name]] = slice(row, row + 1), slice(length, None)
                    inputs[spec.name][tuple(cut)] = spec.pad_value


@dataclass(frozen=True, slots=True)
class _Drawer:
    """Draws values of one input.

    Attributes:
        spec: The input.
        seen: Its examples; None without any.
        generator: The random number generator.
    """

    spec: TensorSpec
    seen: Array | None
    generator: np.random.Generator

    def values(self, shape: Sequence[int]) -> Array:
        """Values of the input's type; not the pad value, unless it is the only one."""
        from marship.proof.graph import with_column_indices
        from marship.proof.words import with_known

        values = with_column_indices(self.spec, self._alike(shape), self.generator)
        return with_known(self.spec, clipped(self.spec, values), self.generator)

    def _alike(self, shape: Sequence[int]) -> Array:
        """Values like the examples'; any values without examples."""
        from marship.proof.graph import random_index, random_input

        if self.spec.value_range is not None:
            return random_index(self.spec, shape, self.generator)
        kept = self._kept()
        if self.spec.dtype == "str" and not self._is_categorical(kept):
            return self._words(shape)
        if kept is None:
            sizes = {name: size for name, size in zip(self.spec.shape, shape, strict=True)
                     if isinstance(name, str)}  # fmt: skip
            return random_input(self.spec, sizes, int(self.generator.integers(1 << 31)))
        if self._is_categorical(kept):
            return self.generator.choice(np.unique(kept), shape)
        if kept.dtype.kind == "b":
            return self.generator.integers(0, 2, shape).astype(bool)
        return self._numbers(kept, shape)

    def _is_categorical(self, kept: Array | None) -> bool:
        if kept is None:
            return False
        return len(np.unique(kept)) <= min(MOST_CATEGORIES, kept.size // LEAST_REPEATS)

    def _words(self, shape: Sequence[int]) -> Array:
        words = self.generator.choice(np.asarray(WORDS, dtype=object), math.prod(shape))
        return words.reshape(shape)

    def _kept(self) -> Array | None:
        """The examples without padding and without non-finite values; None if none is left."""
        if self.seen is None:
            return None
        kept = self.seen if self._has_columns() else self.seen.ravel()
        if self.spec.pad_value is not None:
            kept = kept[kept != self.spec.pad_value]
        if kept.dtype.kind == "f" and not np.isfinite(kept).all():
            kept = kept[np.isfinite(kept)]
        return kept if kept.size else None

    def _has_columns(self) -> bool:
        """Whether it is a table with enough rows for a range per column."""
        table = [isinstance(axis, int) for axis in self.spec.shape] == [False, True]
        return table and self.seen is not None and len(self.seen) >= LEAST_ROWS

    def _numbers(self, kept: Array, shape: Sequence[int]) -> Array:
        """Normal with the examples' mean and deviation; uniform where that leaves their range."""
        axis = 0 if kept.ndim > 1 else None
        values = kept.astype(np.float64)
        low, high = values.min(axis), values.max(axis)
        few = values.size < LEAST_ROWS  # their range and mean would reveal them
        if few and kept.dtype.kind == "f":
            margin = np.abs(high) + 1.0
            low, high = low - margin, high + margin
        drawn = self._noise(shape) * values.std(axis) + values.mean(axis)
        flat = self.generator.uniform(low, high, shape)
        drawn = np.where((drawn > low) & (drawn < high) & (not few), drawn, flat)
        if kept.dtype.kind == "f":
            return drawn.astype(kept.dtype)
        whole = np.round(drawn)
        if self.spec.pad_value is not None:
            whole = np.where(whole == self.spec.pad_value, np.round(high), whole)
        return whole.astype(kept.dtype)

    def _noise(self, shape: Sequence[int]) -> Array:
        """Noise of mean 0 and deviation 1; in patches for an image."""
        if len(shape) != PICTURE_AXES:
            return self.generator.standard_normal(shape)
        edges = sorted(range(1, PICTURE_AXES), key=lambda axis: -shape[axis])[:2]
        coarse = [-(-s // PATCH) if axis in edges else s for axis, s in enumerate(shape)]
        noise = self.generator.standard_normal(coarse)
        for axis in edges:
            noise = np.repeat(noise, PATCH, axis).take(range(shape[axis]), axis)
        return noise + FAINT * self.generator.standard_normal(shape)
