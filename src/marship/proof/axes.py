"""Finds which variable axes of an ONNX file have one size, by running it.

Converters leave axes without a name, give all of them the same one such as `?`, or state a name for
an output whose size depends on the data. So the size of each axis is changed on its own: axes of
inputs that only change together are one axis, and an axis of an output gets the name of the axis
that it follows in every run.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

from marship.contract import Arrays, Contract, TensorSpec
from marship.proof.cases import first_axis, seen_sizes, shared_axis, variable_axes
from marship.proof.comparison import RunModel
from marship.proof.trials import Trials

BASES = (8, 2, 16, 32, 64, 128, 224)
"""Sizes of all axes at once; the first at which the model runs is changed axis by axis."""
FEW_ROWS = 8
BATCH = "batch"
_MOST_TRIES = 64
"""Of axes to change together, a run each."""
_FEW = 4
"""Of so many other axes each choice is tried first."""

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Stated:
    """What the graph calls an axis: None without a name; and its tensor and index, as one."""

    name: str | None
    place: str
    index: int

    @property
    def named(self) -> tuple[str | None, int]:
        """What axes of one kind have in common, such as the length of each layer's cache."""
        return self.name, self.index


@dataclass(frozen=True, slots=True)
class _Group:
    """Axes of inputs that only change together.

    Attributes:
        before: Their sizes at first, by name.
        after: Other sizes at which the model runs; the same where none were found.
    """

    before: Sizes
    after: Sizes


def apart(contract: Contract) -> Contract:
    """The contract with a name for each axis of an input."""
    return _apart(contract, is_row=False)[0]


def resolved(
    contract: Contract,
    run: RunModel,
    example: Arrays | None = None,
    *,
    sized: Collection[str] = (),
    has_rows: bool = True,
) -> Contract:
    """The contract with one name for all axes that have one size, and for no others.

    Args:
        contract: As the graph states it; an axis without a name is called `<tensor>_<index>`.
        run: Runs the model.
        example: Inputs that it takes, whose sizes are tried after the usual ones.
        sized: Outputs whose size depends on values: they follow no axis, whatever the runs show.
        has_rows: Whether a name that is the first axis of several inputs and nothing else is taken
            at its word: two networks side by side would run at different numbers of rows, and
            could not be batched.

    Returns:
        The contract; unchanged if the model runs at none of the sizes that are tried.
    """
    alone, stated = _apart(contract, is_row=has_rows)
    trials = Trials(alone, run, example)
    base = next((sizes for sizes in _bases(alone, example) if trials.takes(sizes)), None)
    if base is None:
        return contract
    groups = _groups(trials, base, stated)
    names = _names(trials, base, groups, stated)
    runs = [
        ({names[axis]: size for axis, size in sizes.items()}, outputs)
        for sizes in ({**base, **changed} for changed in ({}, *(g.after for g in groups)))
        for outputs in trials.outputs(sizes)
    ]
    found = replace(
        contract,
        inputs=tuple(
            replace(spec, shape=tuple(names.get(axis, axis) for axis in spec.shape))
            for spec in alone.inputs
        ),
        outputs=tuple(
            _by_values(spec) if spec.name in sized else _following(spec, runs)
            for spec in contract.outputs
        ),
    )
    return _with_batch(found)


def obstacle(contract: Contract) -> str:
    """Why requests cannot be joined along a first axis, of a contract without a batch axis."""
    if not contract.inputs:
        return "the model has no inputs"
    for spec in contract.inputs:
        if not spec.shape or isinstance(spec.shape[0], int):
            return f"input {spec} has no first axis of variable size"
    axis = first_axis(contract)
    if axis is None:
        firsts = ", ".join(f"{spec.shape[0]} of {spec.name}" for spec in contract.inputs)
        return f"the inputs' first axes vary apart: {firsts}"
    twice = next((s for s in (*contract.inputs, *contract.outputs) if axis in s.shape[1:]), None)
    if twice is not None:
        return f"{axis} is not the number of rows alone: {twice}"
    other = next((s for s in contract.outputs if s.shape[:1] != (axis,)), None)
    if other is None:
        return "rows are not shown to be independent"
    return f"output {other} has no row for each row of the inputs, which are along {axis}"


def _bases(contract: Contract, example: Arrays | None) -> Iterator[Sizes]:
    """Sizes of all axes to begin with: those of the example last, with few rows first."""
    names = variable_axes(contract)
    for size in BASES:
        yield dict.fromkeys(names, size)
    if example is not None:
        seen, rows = seen_sizes(contract, example), first_axis(contract)
        if rows is not None:
            yield seen | {rows: min(seen[rows], FEW_ROWS)}
        yield seen


def _apart(contract: Contract, *, is_row: bool) -> tuple[Contract, dict[str, _Stated]]:
    """The contract of `apart`, and what each axis was called.

    With `is_row` a name that is nothing but a first axis stays one.
    """
    places: dict[int | str, list[int]] = {}
    for spec in contract.inputs:
        for index, axis in enumerate(spec.shape):
            places.setdefault(axis, []).append(index)
    stated: dict[str, _Stated] = {}
    inputs = []
    for spec in contract.inputs:
        shape = list(spec.shape)
        for index, axis in enumerate(spec.shape):
            if isinstance(axis, str):
                stays = len(places[axis]) == 1 or (is_row and not any(places[axis]))
                own = axis if stays else f"{spec.name}:{index}"
                place = f"{spec.name}_{index}"
                stated[own] = _Stated(None if axis == place else axis, place, index)
                shape[index] = own
        inputs.append(replace(spec, shape=tuple(shape)))
    return replace(contract, inputs=tuple(inputs)), stated


def _groups(trials: Trials, base: Sizes, stated: Mapping[str, _Stated]) -> list[_Group]:
    """The axes of inputs, those together that change together.

    The number of runs is in proportion to that of axes: skl2onnx has an input for each column. Many
    of one name, such as a decoder's caches, are one at their word, though each layer runs apart.
    """

    def group(axes: Iterable[str]) -> _Group | None:
        before = {axis: base[axis] for axis in axes}
        choices = ({a: n + 1 for a, n in before.items()}, {a: 2 * n for a, n in before.items()})
        after = next((sizes for sizes in choices if trials.takes({**base, **sizes})), None)
        return None if after is None else _Group(before, after)

    def smaller(whole: _Group, first: str) -> _Group:
        """The axes of a group that change without its others, which may be another one."""
        for part in _parts(first, [axis for axis in whole.before if axis != first]):
            after = {axis: whole.after[axis] for axis in part}
            if trials.runs({**base, **after}):
                return _Group({axis: base[axis] for axis in part}, after)
        return whole

    alone = {axis: group([axis]) for axis in base}
    groups = [found for found in alone.values() if found]
    tied = [axis for axis, found in alone.items() if not found]
    while tied:
        first, *others = tied
        found = None
        if len(others) > _FEW:
            own = stated[first]
            alike = [axis for axis in others if own.name and stated[axis].named == own.named]
            found = group([first, *alike]) if len(alike) >= _FEW else None
            if found is None:
                found = next(filter(None, map(group, _wholes(first, others, stated))), None)
                found = found and smaller(found, first)
        if found is None:
            tries = (group([first, *more]) for more in islice(_partners(others), _MOST_TRIES))
            found = next(filter(None, tries), None)
        same = {first: base[first]}
        groups.append(found or _Group(same, same))
        tied = [axis for axis in tied if axis not in groups[-1].before]
    return groups


def _wholes(
    first: str, others: Sequence[str], stated: Mapping[str, _Stated]
) -> Iterator[tuple[str, ...]]:
    """Choices of many axes that may be one or several groups: those of one index, and all."""
    index = stated[first].index
    yield (first, *(axis for axis in others if stated[axis].index == index))
    yield (first, *others)


def _parts(first: str, others: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Choices of axes of a whole that may be a group: pairs, and those that follow each other."""
    if len(others) > 1:
        yield from ((first, axis) for axis in others)
    yield from ((first, *others[:count]) for count in range(2, len(others)))


def _partners(axes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Choices of axes that may change with another one, the smallest first."""
    for count in range(1, len(axes) + 1):
        yield from combinations(axes, count)


def _names(
    trials: Trials, base: Sizes, groups: Sequence[_Group], stated: Mapping[str, _Stated]
) -> dict[int | str, str]:
    """A name for the axes of one size: one that the graph states, unless others have it already.

    A second stated name is kept where its axis may also be 1: a mask of one row may stand for many.
    """
    names: dict[int | str, str] = {}
    for group in groups:
        for size in dict.fromkeys(group.before.values()):
            axes = [axis for axis, n in group.before.items() if n == size]
            choices = [name for axis in axes if (name := stated[axis].name)]
            choices += [stated[axis].place for axis in axes]
            taken = set(names.values())
            usual = next(name for name in choices if name not in taken)
            for axis in axes:
                own = stated[axis].name
                is_other = own is not None and own != usual and own not in taken
                stays = is_other and trials.takes({**base, axis: 1})
                names[axis] = own if own and stays else usual
    return names


def _by_values(spec: TensorSpec) -> TensorSpec:
    """The output with names of its own for all axes of variable size."""
    shape = (n if isinstance(n, int) else f"{spec.name}_{i}" for i, n in enumerate(spec.shape))
    return replace(spec, shape=tuple(shape))


def _following(spec: TensorSpec, runs: Sequence[tuple[Sizes, Arrays]]) -> TensorSpec:
    """The output with the names of the axes that its own follow; others by a name of their own."""
    shapes = [outputs[spec.name].shape for _, outputs in runs]
    if len({len(shape) for shape in shapes}) != 1:
        return spec
    stated = spec.shape if len(spec.shape) == len(shapes[0]) else shapes[0]
    sizes = [sizes for sizes, _ in runs]
    shape = tuple(
        _axis(stated[index], list(given), sizes, f"{spec.name}_{index}")
        for index, given in enumerate(zip(*shapes, strict=True))
    )
    return replace(spec, shape=shape)


def _axis(stated: int | str, given: list[int], runs: Sequence[Sizes], own: str) -> int | str:
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
