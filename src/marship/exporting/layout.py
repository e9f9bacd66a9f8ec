"""The variable axes of a model's inputs: their names and bounds.

The batch is the first axis of every input. Axis 1 of an input with a pad value is variable.
Other axes are variable if they are named. The default bounds of an axis are 1 and its size in the
examples; the batch is unbounded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from marship.contract import Arrays, Contract
from marship.errors import DataError, ModelError, UsageError
from marship.fit.recipe import Recipe

BATCH = "batch"
PADDED_AXIS = "length"


@dataclass(frozen=True, slots=True)
class Layout:
    """The variable axes of the inputs.

    Attributes:
        axes: Names of axes, by input and index.
        bounds: The smallest and largest size, by the axis's name; None is unbounded.
        steps: The number that all sizes are multiples of, by the axis's name, where it is not 1.
        sizes: The example's sizes, by the axis's name.
    """

    axes: Mapping[str, Mapping[int, str]]
    bounds: Mapping[str, tuple[int, int | None]]
    steps: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def completed(recipe: Recipe, pad: tuple[str, ...], bounds: tuple[str, ...]) -> Recipe:
    """The recipe, with pad values and bounds overridden by flags."""
    pads = {name: _number(value, "--pad") for name, value in _pairs(pad, "--pad")}
    ranges = {name: _range(value) for name, value in _pairs(bounds, "--bounds")}
    kept = {name: step for name, step in recipe.steps.items() if name not in ranges}
    return replace(
        recipe,
        pad_values={**recipe.pad_values, **pads},
        bounds={**recipe.bounds, **{name: (low, high) for name, (low, high, _) in ranges.items()}},
        steps={**kept, **{name: step for name, (_, _, step) in ranges.items() if step > 1}},
    )


def layout(
    recipe: Recipe, examples: Arrays, dynamic: tuple[str, ...], *, fixed_batch: bool
) -> Layout:
    """The variable axes: the batch, padded ones, the recipe's and those of --dynamic.

    Raises:
        UsageError: A flag names an input or an axis that does not exist.
        DataError: One name stands for axes of different sizes in the examples.
    """
    names: dict[str, dict[int, str]] = {
        name: {} if fixed_batch or array.ndim == 0 else {0: BATCH}
        for name, array in examples.items()
    }
    bounded = [name for name in recipe.bounds if name != BATCH]
    for name in recipe.pad_values:
        _known(name, examples, 1)
        names[name][1] = bounded[0] if len(bounded) == 1 else PADDED_AXIS
    for place, axis in _pairs((*recipe.dynamic, *dynamic), "--dynamic"):
        name, _, index = place.rpartition(":")
        number = int(_number(index, "--dynamic"))
        _known(name, examples, number)
        if not axis.isidentifier():
            raise UsageError(f"an axis must have a plain name like length, got {axis!r}.")
        names[name][number] = axis
    sizes = _sizes(names, examples)
    unknown = sorted(set(recipe.bounds) - set(sizes))
    if unknown:
        raise UsageError(
            f"bounds must name variable axes, got {', '.join(unknown)}. "
            f"Variable are: {', '.join(sizes) or 'none'}; --dynamic adds more."
        )
    seen = {axis: (1, size) for axis, size in sizes.items() if axis != BATCH}
    for axis, step in recipe.steps.items():
        if sizes[axis] % step:
            raise DataError(
                f"axis {axis} of the example must be a multiple of {step}, as its bounds state, "
                f"got {sizes[axis]}. Give an example of such a size."
            )
    return Layout(names, {**seen, **recipe.bounds}, recipe.steps, sizes)


def check_inputs(contract: Contract, wanted: Layout) -> None:
    """Reject a graph with a variable axis that the exporter silently made fixed.

    Raises:
        ModelError: forward ties a variable axis to one size.
    """
    for spec in contract.inputs:
        for index, axis in wanted.axes[spec.name].items():
            low, high = wanted.bounds.get(axis, (1, None))
            if spec.shape[index] != axis and low != high:
                fixed = "--fixed-batch" if axis == BATCH else "bounds of one size"
                raise ModelError(
                    f"axis {axis} of {spec.name} must be variable, got a forward that needs "
                    f"{spec.shape[index]}. Take the size from {spec.name}.shape[{index}], "
                    f"not from len(), or state {fixed}."
                )


def check_outputs(contract: Contract, sizes: Mapping[str, int], outputs: Arrays) -> None:
    """Reject a graph whose outputs have other shapes than it declares.

    Raises:
        ModelError: An axis is declared fixed, or equal to one of the inputs', and is not.
    """
    for spec in contract.outputs:
        stated = [sizes.get(axis) if isinstance(axis, str) else axis for axis in spec.shape]
        given = outputs[spec.name].shape
        if len(stated) != len(given) or any(
            want is not None and want != got for want, got in zip(stated, given, strict=True)
        ):
            raise ModelError(
                f"output {spec} must have the shape that the graph states, got {list(given)} "
                f"at {dict(sizes)}. Compute its sizes from the inputs' shapes in forward."
            )


def _sizes(names: Mapping[str, Mapping[int, str]], examples: Arrays) -> dict[str, int]:
    """The size of each variable axis in the examples, equal for all axes of one name."""
    sizes: dict[str, int] = {}
    for name, axes in names.items():
        for index, axis in axes.items():
            size = examples[name].shape[index]
            if size == 0 or sizes.setdefault(axis, size) != size:
                raise DataError(
                    f"axis {axis} must have one size above 0 in the whole example, got "
                    f"{size} in {name}. Give every input the same, or state --fixed-batch and name "
                    "the axes that vary, such as --dynamic x:0=rows, where the batch is another."
                )
    return sizes


def _known(name: str, examples: Arrays, index: int) -> None:
    if name not in examples:
        raise UsageError(f"inputs are {', '.join(examples)}, got {name!r}. Name one of them.")
    if not 0 <= index < examples[name].ndim:
        raise UsageError(
            f"{name} must have an axis {index}, got shape {examples[name].shape}. "
            "Count the axes from 0."
        )


def _pairs(texts: tuple[str, ...], flag: str) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise UsageError(f"{flag} must read name=value, got {text!r}. See --help.")
        yield name, value


def _number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{flag} must give a number, got {text!r}.") from error


def _range(text: str) -> tuple[int, int | None, int]:
    """The smallest and largest size, and their step, of `low:high` or `low:high:step`."""
    low, colon, rest = text.partition(":")
    high, _, step = rest.partition(":")
    try:
        found = int(low), int(high) if high else None, int(step) if step else 1
    except ValueError:
        colon = ""
    if not colon or found[0] < 1 or (found[1] is not None and found[1] < found[0]) or found[2] < 1:
        raise UsageError(
            "--bounds must read name=low:high or name=low:high:step with 1 <= low <= high, "
            f"got {text!r}."
        )
    if found[0] % found[2] or (found[1] or 0) % found[2]:
        raise UsageError(
            f"bounds must begin and end with multiples of their step, got {text!r}. "
            f"Write {-found[0] // found[2] * -found[2]}:"
            f"{'' if found[1] is None else found[1] - found[1] % found[2]}:{found[2]}."
        )
    return found
