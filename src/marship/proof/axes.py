"""Finds which variable axes of an ONNX file have one size, by running it.

Converters leave axes without a name, give all of them the same one such as `?`, or state a name for
an output whose size depends on the data. So the size of each axis is changed on its own: axes of
inputs that only change together are one axis, and an axis of an output gets the name of the axis
that it follows in every run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

from marship.contract import Arrays, Contract, TensorSpec
from marship.errors import ModelError
from marship.proof.cases import draw_random, shared_axis
from marship.proof.comparison import RunModel
from marship.proof.sizes import MOST_BYTES, input_bytes

BASES = (8, 2, 16, 32, 64, 128, 224)
"""Sizes of all axes at once; the first at which the model runs is changed axis by axis."""
BATCH = "batch"
_SEEDS = (0, 1)
_MOST_TRIES = 64
"""Of axes to change together, a run each."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Axes of inputs that have one size.

    Attributes:
        axes: Their names.
        changed: Another size than the base at which the model runs.
    """

    axes: tuple[str, ...]
    changed: int


def resolved(contract: Contract, run: RunModel) -> Contract:
    """The contract with one name for all axes that have one size, and for no others.

    Args:
        contract: As the graph states it; an axis without a name is called `<tensor>_<index>`.
        run: Runs the model.

    Returns:
        The contract; unchanged if the model runs at none of the sizes that are tried.
    """
    apart, stated = _apart(contract)
    base = next((n for n in BASES if _outputs(apart, run, _all(apart, n)) is not None), None)
    if base is None:
        return contract
    groups = _groups(apart, run, base)
    names = _names(groups, stated)
    inputs = tuple(
        replace(spec, shape=tuple(names.get(axis, axis) for axis in spec.shape))
        for spec in apart.inputs
    )
    found = replace(contract, inputs=inputs)
    sizes = [{names[g.axes[0]]: base for g in groups}]
    sizes += [sizes[0] | {names[g.axes[0]]: g.changed} for g in groups]
    runs = [
        (at, results)
        for at in sizes
        for seed in _SEEDS
        if (results := _outputs(found, run, at, seed)) is not None
    ]
    outputs = tuple(_following(spec, runs) for spec in contract.outputs)
    return _with_batch(replace(found, outputs=outputs))


def _apart(contract: Contract) -> tuple[Contract, dict[str, int | str]]:
    """The contract with a name for each axis of an input, and what each was called.

    A name that is the first axis of several inputs and nothing else is taken at its word: a model
    of two towers would run at different numbers of rows, which nobody means.
    """
    places: dict[int | str, set[int]] = {}
    for spec in contract.inputs:
        for index, axis in enumerate(spec.shape):
            places.setdefault(axis, set()).add(index)
    stated: dict[str, int | str] = {}
    inputs = []
    for spec in contract.inputs:
        shape = list(spec.shape)
        for index, axis in enumerate(spec.shape):
            if isinstance(axis, str):
                own = axis if places[axis] == {0} else f"{spec.name}:{index}"
                shape[index], stated[own] = own, axis
        inputs.append(replace(spec, shape=tuple(shape)))
    return replace(contract, inputs=tuple(inputs)), stated


def _all(contract: Contract, size: int) -> dict[str, int]:
    return {axis: size for spec in contract.inputs for axis in spec.shape if isinstance(axis, str)}


def _outputs(
    contract: Contract, run: RunModel, sizes: Mapping[str, int], seed: int = 0
) -> Arrays | None:
    """The outputs at these sizes; None if the model does not run, or they are too large to try."""
    if input_bytes(contract, sizes) > MOST_BYTES:
        return None
    try:
        return run(draw_random(contract, None, sizes, seed).inputs)
    except ModelError:
        return None


def _groups(contract: Contract, run: RunModel, base: int) -> list[_Group]:
    """The axes of inputs, those together that change together."""
    usual = _all(contract, base)

    def changed(axes: Sequence[str]) -> int | None:
        return next(
            (
                size
                for size in (base + 1, 2 * base)
                if _outputs(contract, run, usual | dict.fromkeys(axes, size)) is not None
            ),
            None,
        )

    groups, tied = [], []
    for axis in usual:
        size = changed([axis])
        if size is None:
            tied.append(axis)
        else:
            groups.append(_Group((axis,), size))
    while tied:
        first, *others = tied
        tries = (
            _Group((first, *more), size)
            for more in islice(_partners(others), _MOST_TRIES)
            if (size := changed([first, *more])) is not None
        )
        group = next(tries, _Group((first,), base))
        groups.append(group)
        tied = [axis for axis in tied if axis not in group.axes]
    return groups


def _partners(axes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Choices of axes that may change with another one: all of them, then the smallest first."""
    for count in range(1, len(axes) + 1):
        yield from combinations(axes, count)


def _names(groups: Sequence[_Group], stated: Mapping[str, int | str]) -> dict[int | str, str]:
    """A name for each axis: the one that the graph states, unless another group has it already."""
    names: dict[int | str, str] = {}
    for group in sorted(groups, key=lambda g: _is_anonymous(g.axes[0], stated)):
        choices = [str(stated[axis]) for axis in group.axes]
        choices.sort(key=lambda name: any(_is_anonymous(a, {a: name}) for a in group.axes))
        free = [name for name in choices if name not in names.values()]
        own = [axis.replace(":", "_") for axis in group.axes]
        names.update(dict.fromkeys(group.axes, (free or own)[0]))
    return names


def _is_anonymous(axis: str, stated: Mapping[str, int | str]) -> bool:
    """Whether the graph has no name for an axis: it is called by its place then."""
    return str(stated[axis]) == axis.replace(":", "_")


def _following(spec: TensorSpec, runs: Sequence[tuple[Mapping[str, int], Arrays]]) -> TensorSpec:
    """The output with the names of the axes that its own follow; others by a name of their own."""
    shapes = [results[spec.name].shape for _, results in runs]
    if len({len(shape) for shape in shapes}) != 1:
        return spec
    is_stated = len(spec.shape) == len(shapes[0])
    shape: list[int | str] = []
    for index, given in enumerate(zip(*shapes, strict=True)):
        stated = spec.shape[index] if is_stated else given[0]
        shape.append(
            _axis(stated, list(given), [sizes for sizes, _ in runs], f"{spec.name}_{index}")
        )
    return replace(spec, shape=tuple(shape))


def _axis(
    stated: int | str, given: list[int], runs: Sequence[Mapping[str, int]], own: str
) -> int | str:
    """What an output's axis is called that had these sizes in the runs."""
    if isinstance(stated, int) and set(given) == {stated}:
        return stated
    follows = [name for name in runs[0] if given == [sizes[name] for sizes in runs]]
    if stated in follows:
        return stated
    if follows:
        return follows[0]
    return own if isinstance(stated, int) or stated in runs[0] else stated


def _with_batch(contract: Contract) -> Contract:
    """The contract whose shared first axis has a name that says what it is."""
    first = shared_axis(contract)
    specs = (*contract.inputs, *contract.outputs)
    taken = {axis for spec in specs for axis in spec.shape}
    if first is None or first not in {f"{s.name}_0" for s in specs} or BATCH in taken:
        return contract

    def renamed(found: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(s, shape=tuple(BATCH if axis == first else axis for axis in s.shape))
            for s in found
        )

    return replace(contract, inputs=renamed(contract.inputs), outputs=renamed(contract.outputs))
