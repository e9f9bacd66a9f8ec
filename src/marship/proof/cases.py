"""Test inputs for a model: real ones cut from examples, and random ones in their range."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from marship import texts
from marship.contract import NPZ_FAULTS, WIDENED, Array, Arrays, Contract, TensorSpec, strings
from marship.errors import DataError, UsageError

BATCH_SIZES = (1, 2, 7)
DEFAULT_SIZE = 8
"""Size of a variable axis without examples and bounds."""
TARGET = "target/"
"""What the names of a judge's targets begin with, in an npz of rows."""


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one comparison.

    Attributes:
        kind: "real" or "random".
        sizes: Size of each variable axis, by its name.
        inputs: Arrays by input name.
    """

    kind: str
    sizes: Mapping[str, int]
    inputs: Arrays

    def __str__(self) -> str:
        """`real input at batch 2, length 5`, as messages show it."""
        at = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        return f"{self.kind} input at {at}" if at else f"{self.kind} input"


def read_rows(path: Path) -> Arrays:
    """Read an npz of rows by input name, converted to native byte order.

    Raises:
        UsageError: The file does not exist.
        DataError: It does not hold arrays.
    """
    try:
        # opening a pipe without a writer would block
        with texts.open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
            return _with_texts({name: _array(name, arrays[name]) for name in arrays.files})
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} must hold example inputs, got no such file. "
            "Write it with numpy.savez(path, <input name>=<array of rows>)."
        ) from error
    except NPZ_FAULTS as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{path} must be an npz of plain arrays, got Python objects. Convert text with "
                "array.astype(str), and numbers with array.astype(numpy.float32)."
            ) from error
        # NumPy advises to load pickles where a file is no npz: nobody must
        got = "no npz file" if "pickle" in str(error) else " ".join(str(error).split())
        raise DataError(
            f"{path} must be an npz of plain arrays, got {got.rstrip('.')}. "
            "Write it with numpy.savez(path, <input name>=<array of rows>)."
        ) from error


def _array(name: str, value: object) -> Array:
    """The array in native byte order; text as objects, as ONNX Runtime takes it."""
    if not isinstance(value, np.ndarray):  # NumPy returns bytes for files that are not arrays
        raise TypeError(f"{name!r} that is no array")
    if value.dtype.kind == "S":
        value = np.char.decode(value, "utf-8")
    if value.dtype.kind == "U":
        return value.astype(object)
    return value.astype(
        value.dtype.newbyteorder("="), copy=False
    )  # PyTorch supports native byte order only


def _with_texts(arrays: Arrays) -> Arrays:
    """The arrays, with texts in place of the two that `strings.stored` makes of them."""
    found = dict(arrays)
    for name in arrays:
        text = name.removesuffix(strings.TEXT)
        if text != name and f"{text}{strings.LENGTHS}" in arrays:
            found[text] = strings.joined(found.pop(name), found.pop(f"{text}{strings.LENGTHS}"))
    return found


def write_rows(path: Path, arrays: Arrays) -> None:
    """Write what `read_rows` reads; texts without a change, and without pickle."""
    parts = {
        f"{name}{part}": stored
        for name, array in arrays.items()
        for part, stored in strings.stored(array)
    }
    np.savez_compressed(path, **parts)  # type: ignore[arg-type]  # its stub takes no mapping


def draw_cases(contract: Contract, examples: Arrays | None) -> Iterator[Case]:
    """Real and random inputs at batch 1, 2 and 7 and at the sizes of `sizes_to_try`.

    Without examples they are all random.
    """
    for seed, (batch, sizes) in enumerate(
        (batch, sizes) for batch in batches(contract) for sizes in sizes_to_try(contract, examples)
    ):
        if examples is not None:
            yield draw(contract, examples, batch | sizes, seed)
        yield draw_random(contract, examples, batch | sizes, seed)


def sizes_to_try(contract: Contract, examples: Arrays | None) -> list[dict[str, int]]:
    """The smallest, a middle and the largest size of every variable axis except the batch.

    The smallest is not 0, of which there are no values; see `with_an_empty_axis`. The largest is
    the contract's bound, or without one the examples' size.
    """
    seen = seen_sizes(contract, examples)
    batch = first_axis(contract)
    ranges = {}
    for name in variable_axes(contract):
        if name != batch:
            low, high = contract.bounds.get(name, (1, None))
            low = low or contract.steps.get(name, 1)
            usual = max(DEFAULT_SIZE, 2 * contract.steps.get(name, 1))
            ranges[name] = (low, max(low, high or seen.get(name, usual)))
    levels = [
        {
            name: allowed(contract, name, low + round((high - low) * share))
            for name, (low, high) in ranges.items()
        }
        for share in (0.0, 0.4, 1.0)
    ]
    return [sizes for i, sizes in enumerate(levels) if sizes not in levels[:i]]


def with_an_empty_axis(contract: Contract, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The sizes with 0 for one of the axes that may have it, for each of them."""
    for axis, (low, _) in contract.bounds.items():
        if low == 0 and axis in sizes:
            yield {**sizes, axis: 0}


class Bounded(Protocol):
    """What states bounds and steps of axes by name: a contract, or a layout before there is one."""

    @property
    def bounds(self) -> Mapping[str, tuple[int, int | None]]:
        """The smallest and largest sizes."""

    @property
    def steps(self) -> Mapping[str, int]:
        """The numbers that sizes are multiples of."""


def allowed(bounded: Bounded, axis: str, size: int) -> int:
    """The nearest size that an axis may have, the smaller of two."""
    low, high = bounded.bounds.get(axis, (1, None))
    step = bounded.steps.get(axis, 1)
    inside = max(low, size if high is None else min(size, high))
    below = inside - inside % step
    return below if below >= low else below + step


def first_axis(contract: Contract) -> str | None:
    """The variable first axis that all inputs share, if there is one."""
    return _only_first([*contract.inputs])


def shared_axis(contract: Contract) -> str | None:
    """The variable first axis that all inputs and outputs share, if there is one.

    It must stand for rows alone: of n texts of n tokens, joined requests would have other lengths.
    """
    specs = [*contract.inputs, *contract.outputs]
    axis = _only_first(specs)
    return None if any(axis in spec.shape[1:] for spec in specs) else axis


def _only_first(specs: Sequence[TensorSpec]) -> str | None:
    firsts = {spec.shape[:1] for spec in specs}
    first = next(iter(firsts)) if len(firsts) == 1 else ()
    return first[0] if first and isinstance(first[0], str) else None


def draw(contract: Contract, examples: Arrays | None, sizes: Mapping[str, int], seed: int) -> Case:
    """A real case within the examples' sizes; a random one without examples."""
    if examples is None:
        return draw_random(contract, None, sizes, seed)
    return draw_real(contract, examples, within(contract, sizes, examples), seed)


def draw_real(contract: Contract, examples: Arrays, sizes: Mapping[str, int], seed: int) -> Case:
    """Rows of the examples, starting at a row that depends on the seed, cut to `sizes`."""
    batch = first_axis(contract)
    inputs = {}
    for spec in contract.inputs:
        array = examples[spec.name]
        if batch is not None:
            array = array[(seed + np.arange(sizes[batch])) % len(array)]
        cut = tuple(
            slice(sizes.get(axis) if isinstance(axis, str) else None) for axis in spec.shape
        )
        inputs[spec.name] = np.asarray(array[cut], order="C")  # keeps scalars
    return Case("real", sizes, inputs)


def draw_random(
    contract: Contract, examples: Arrays | None, sizes: Mapping[str, int], seed: int
) -> Case:
    """Random values in the examples' range, never a pad value; any values without examples.

    Indices are drawn from the whole table.
    """
    from marship.proof.graph import random_index, random_input, with_column_indices
    from marship.proof.words import with_known

    generator = np.random.default_rng(seed)
    inputs = {}
    for spec in contract.inputs:
        if examples is None:
            inputs[spec.name] = random_input(spec, sizes, seed)
            continue
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        if spec.value_range is not None:
            values = random_index(spec, shape, generator)
        else:
            seen = examples[spec.name].ravel()
            if spec.pad_value is not None and (seen != spec.pad_value).any():
                seen = seen[seen != spec.pad_value]
            values = _like(seen, shape, generator)
        values = clipped(spec, with_column_indices(spec, values, generator))
        inputs[spec.name] = with_known(spec, values, generator)
    return Case("random", sizes, inputs)


def _like(seen: Array, shape: list[int], generator: np.random.Generator) -> Array:
    """Numbers of a normal distribution within the range of `seen`; other types: its values."""
    if seen.dtype.kind != "f":
        return generator.choice(seen, shape)
    finite = seen[np.isfinite(seen)].astype(np.float64)
    if finite.size == 0:
        return generator.choice(seen, shape)
    values = generator.normal(finite.mean(), finite.std(), shape)
    low, high = finite.min(), finite.max()
    # redrawn, not clipped: argmax of equal values differs between runtimes
    share = generator.random(shape)
    again = low * (1 - share) + high * share
    return np.where((values < low) | (values > high), again, values).astype(seen.dtype)


def clipped(spec: TensorSpec, values: Array) -> Array:
    """The values, with those beyond the limits of the input's narrow type moved there.

    A type that has no sign gets magnitudes: else half of all values would be its smallest.
    """
    if not spec.narrow:
        return values
    limits = WIDENED[spec.narrow]
    return np.clip(np.abs(values) if limits.low > 0 else values, limits.low, limits.high)


def batches(contract: Contract) -> list[dict[str, int]]:
    """The batch sizes to try, within the bounds; one empty choice if the batch is fixed."""
    axis = first_axis(contract)
    if axis is None:
        return [{}]
    step = contract.steps.get(axis, 1)
    sizes = {allowed(contract, axis, step * size) for size in BATCH_SIZES}
    return [{axis: size} for size in sorted(sizes)]


def variable_axes(contract: Contract) -> list[str]:
    """The names of the inputs' variable axes, in their order."""
    names = (axis for spec in contract.inputs for axis in spec.shape if isinstance(axis, str))
    return list(dict.fromkeys(names))


def seen_sizes(contract: Contract, examples: Arrays | None) -> dict[str, int]:
    """The size of every variable axis in the examples."""
    if examples is None:
        return {}
    return {
        axis: size
        for spec in contract.inputs
        for axis, size in zip(spec.shape, examples[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }


def within(contract: Contract, sizes: Mapping[str, int], examples: Arrays) -> dict[str, int]:
    """`sizes` limited to those of the examples, except the batch, which may repeat rows."""
    seen = seen_sizes(contract, examples)
    batch = first_axis(contract)
    return {k: size if k == batch else min(size, seen[k]) for k, size in sizes.items()}
