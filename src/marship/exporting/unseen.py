"""Values that the example may not have: large and negative integers, masks of one value alone.

The contract bounds integers where the file and PyTorch part: in a file, some operators compute them
by floats. Nothing is compared at values that PyTorch refuses, or that change the sizes of its
tensors, which large ones would make as large.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from marship.contract import Array, Contract, TensorSpec
from marship.errors import ModelError, ParityError
from marship.exporting.compare import Sides, compare_one
from marship.exporting.indices import run_within
from marship.proof.cases import Case, allowed, draw_random, first_axis, sizes_to_try

RUNGS = (1, 1 << 8, 1 << 16, 1 << 20, 1 << 24, 1 << 31, 1 << 53)
"""Magnitudes to which integers are tried, and then the type's own: float32 is exact up to 2^24."""
VALUES, MOST_ROWS = 256, 64
"""How many values a case is to have of the input, within this number of rows."""

Ranges = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Compared:
    """The two models, the sizes to compare at, and the deadline of time.perf_counter."""

    sides: Sides
    until: float
    generator: np.random.Generator

    def base(self, spec: TensorSpec) -> Case | None:
        """Usual inputs with enough values of one; None if PyTorch does not run on such."""
        contract = self.sides.contract
        levels = sizes_to_try(contract, self.sides.examples)
        sizes, axis = levels[len(levels) // 2], first_axis(contract)
        if axis is not None:
            row = prod(sizes.get(n, 1) if isinstance(n, str) else n for n in spec.shape)
            rows = min(MOST_ROWS, max(2, VALUES // max(1, row)))
            sizes = {axis: allowed(contract, axis, rows), **sizes}
        examples = self.sides.examples
        drawn = draw_random(contract, examples, sizes, 0)
        try:
            return run_within(self.sides.reference, drawn, contract, examples)[0]
        except ModelError:
            return None

    def agrees(self, base: Case, name: str, values: Array) -> bool | None:
        """Whether the file gives PyTorch's outputs; None if PyTorch's cannot be compared."""
        case = Case("unseen", base.sizes, {**base.inputs, name: values})
        with _Sizes() as usual:
            self.sides.reference(base.inputs)
        try:
            with _Sizes() as sizes:
                want = self.sides.reference(case.inputs)
        except ModelError:
            return None
        is_finite = all(np.isfinite(v).all() for v in want.values() if v.dtype.kind == "f")
        if sizes.total != usual.total or not is_finite or time.perf_counter() > self.until:
            return None
        try:
            compare_one(self.sides, case, want)
        except (ModelError, ParityError):
            return False
        return True


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """Counts the elements of all tensors that operators return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401  torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  what the operator returns
        returned = func(*args, **(kwargs or {}))
        for value in returned if isinstance(returned, tuple | list) else (returned,):
            self.total += 1 + value.numel() if isinstance(value, torch.Tensor) else 1
        return returned


def compare_unseen(sides: Sides, until: float, seed: int) -> Ranges:
    """Compare at integers of all magnitudes, and where a mask is the same everywhere.

    Args:
        sides: The two models to compare.
        until: Deadline of time.perf_counter.
        seed: Of the values.

    Returns:
        By input, the range of integers beyond which the file gives other outputs than PyTorch.

    Raises:
        ParityError: It does where a mask is the same everywhere.
    """
    compared = _Compared(sides, until, np.random.default_rng(seed))
    ranges: dict[str, tuple[int, int]] = {}
    for spec in sides.contract.inputs:
        if spec.dtype == "bool":
            _check_masks(compared, spec)
            continue
        is_index = spec.value_range is not None or spec.column_ranges
        if spec.dtype.startswith(("int", "uint")) and not is_index:
            found = _range_of(compared, spec)
            ranges |= {spec.name: found} if found else {}
    return ranges


def bounded(contract: Contract, ranges: Ranges) -> Contract:
    """The contract with these ranges of integers."""
    inputs = tuple(
        replace(spec, value_range=ranges.get(spec.name, spec.value_range))
        for spec in contract.inputs
    )
    return replace(contract, inputs=inputs)


def remarks(ranges: Ranges) -> list[str]:
    """A line on each range."""
    return [
        f"input {name} must be from {low} to {high}: beyond, the file gives other outputs than "
        "PyTorch, and requests are refused."
        for name, (low, high) in ranges.items()
    ]


def _check_masks(compared: _Compared, spec: TensorSpec) -> None:
    base = compared.base(spec)
    if base is None:
        return
    for value in (True, False):
        mask = np.full_like(base.inputs[spec.name], value)
        if compared.agrees(base, spec.name, mask) is False:
            raise ParityError(
                f"ONNX Runtime's outputs must be PyTorch's where {spec.name} is {value} "
                f"throughout, got others. Let forward treat that case by itself where it uses "
                f"{spec.name}."
            )


def _range_of(compared: _Compared, spec: TensorSpec) -> tuple[int, int] | None:
    """The range of an input within which outputs agree; None if they do wherever PyTorch runs."""
    base, seen = compared.base(spec), compared.sides.examples[spec.name]
    if base is None:
        return None
    most = int(np.iinfo(spec.dtype).max)
    ends, is_bounded = [int(seen.min()), int(seen.max())], False
    # not the type's least number: divided by -1 it ends the process
    for side, limit in ((1, most), (0, -most)):
        if side == 0 and spec.dtype.startswith("u"):
            continue
        for rung in (*(rung for rung in RUNGS if rung < most), most):
            edge = rung if side else -rung
            agrees = compared.agrees(base, spec.name, _drawn(compared, base, spec, edge))
            if not agrees:
                is_bounded = is_bounded or agrees is False
                ends[side] = limit if agrees is None else ends[side]
                break
            ends = [min(ends[0], edge, 0), max(ends[1], edge)]
    return (ends[0], ends[1]) if is_bounded else None


def _drawn(compared: _Compared, base: Case, spec: TensorSpec, edge: int) -> Array:
    """Integers of all magnitudes from 0 to `edge`, which is one of them; zeros in the first row."""
    shape, generator = base.inputs[spec.name].shape, compared.generator
    kind = np.dtype(spec.dtype)
    values = generator.integers(min(edge, 0), max(edge, 0), shape, dtype=kind, endpoint=True)
    fewer = generator.integers(0, abs(edge).bit_length(), shape, endpoint=True)
    is_less = generator.random(shape) < 1 / 2
    values = np.asarray(np.where(is_less, values >> fewer.astype(kind), values).astype(kind))
    if values.ndim > 1:
        values[0] = 0
    if values.size:
        values.flat[-1] = edge
    return values
