"""Validates, stacks, runs and splits requests; errors are isolated to their request."""

import logging
import math
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.errors import InvalidInputError, MarshipError, ModelError, TooLargeError, bare
from marship.serving.formats.ranges import outside
from marship.serving.formats.tensors import MISSING_ADVICE, conform

RunModel = Callable[[Arrays], Arrays]
Parts = list[Arrays | MarshipError]
"""The inputs, or the outputs and errors, of a request with several parts."""
Sizes = dict[str, int]
"""Sizes of one request's variable axes, by name."""

logger = logging.getLogger(__name__)

_MEMORY = ("Failed to allocate memory", "bad allocation", "bad_alloc", "MemoryError")
"""In what ONNX Runtime says where it has too little memory for a tensor."""
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def validate(inputs: Arrays, contract: Contract, *, allow_non_finite: bool = False) -> Sizes:
    """Validate one request's tensors, in the contract's types, against the contract.

    Returns:
        The sizes of its variable axes.

    Raises:
        InvalidInputError: A tensor has another rank or size than the contract states, two
            disagree about an axis, or a value is not finite or outside of the table it indexes.
    """
    sizes: Sizes = {}
    for spec in contract.inputs:
        array = inputs[spec.name]
        if array.ndim != len(spec.shape):
            raise InvalidInputError(
                f"{spec.name} must be {spec.form}, got shape {list(array.shape)}."
                + _nesting(array, spec)
            )
        for axis, size in zip(spec.shape, array.shape, strict=True):
            _check_axis(spec, axis, size, sizes, contract)
        if array.dtype.kind == "f" and not allow_non_finite:
            _check_finite(array, spec)
        if problem := outside(array, spec):
            raise InvalidInputError(problem)
    return sizes


def _nesting(array: Array, spec: TensorSpec) -> str:
    """What to do where one level of lists is missing: around all, or around each value."""
    if array.ndim != len(spec.shape) - 1:
        return ""
    if array.ndim and spec.shape[-1] == 1 and spec.shape[:-1] != array.shape:
        opened, closed = "[" * array.ndim, "]" * array.ndim
        return f" Each value is a list of one: {opened}[...], [...]{closed}."
    return " One row is a list of one row."


def _check_finite(array: Array, spec: TensorSpec) -> None:
    """Refuse infinity, and NaN unless it stands for a missing value."""
    if np.isfinite(array).all():
        return
    if not spec.takes_missing:
        raise InvalidInputError(
            f"{spec.name} must hold finite {spec.dtype} values, got NaN, infinity or one too "
            f"large for the type.{f' {MISSING_ADVICE}' if np.isnan(array).any() else ''}"
        )
    if np.isinf(array).any():
        raise InvalidInputError(
            f"{spec.name} must hold finite {spec.dtype} values or NaN, got infinity or one too "
            "large for the type."
        )
    for place in spec.full_columns:
        if np.isnan(array[..., place]).any():
            name = spec.column(len(spec.shape) - 1, place)
            raise InvalidInputError(
                f"{name} must hold finite {spec.dtype} values, got NaN or null. {MISSING_ADVICE}"
            )


def _check_axis(
    spec: TensorSpec, axis: int | str, size: int, sizes: Sizes, contract: Contract
) -> None:
    if isinstance(axis, int):
        if size != axis:
            raise InvalidInputError(f"{spec.name} must be {spec.form}, got an axis of size {size}.")
        return
    if not contract.takes_size(axis, size):
        rule = contract.size_rule(axis)
        raise InvalidInputError(f"axis {axis} of {spec.name} must be {rule}, got {size}.")
    if sizes.setdefault(axis, size) != size:
        raise InvalidInputError(
            f"axis {axis} must have one size in all inputs, got {sizes[axis]} and {size}."
        )


def _marships(error: Exception) -> MarshipError:
    """The error, or a ModelError for an unexpected one."""
    if isinstance(error, MarshipError):
        return error
    return ModelError(f"a call of the model must run, got {type(error).__name__}: {error}")


def _refusal(error: MarshipError) -> MarshipError:
    """The error of a request that the model refuses; what ONNX Runtime said is only in the log."""
    reference = uuid.uuid4().hex[:12]
    logger.warning("the model refuses a request, reference %s: %s", reference, error)
    where = f"The server's log has the reason under reference {reference}."
    if any(words in str(error) for words in _MEMORY):
        return TooLargeError(
            "the request must need no more memory than the server has, got one that does. "
            f"Ask for less. {where}"
        )
    return InvalidInputError(
        "the inputs must be sizes and values that the model takes, got some that it refuses. "
        f"{where}"
    )


def paddable_axes(contract: Contract) -> frozenset[str]:
    """Variable axes that may be padded, so that requests of different sizes share a batch.

    Every input with the axis has a pad value, and outputs have the axis unchanged or not at all,
    so that padding can be removed again.
    """
    axes = {a for spec in contract.inputs for a in spec.shape if isinstance(a, str)}
    fixed = {
        axis
        for spec in contract.inputs
        if spec.pad_value is None
        for axis in spec.shape
        if isinstance(axis, str)
    }
    computed = {
        name
        for spec in contract.outputs
        for axis in spec.shape
        if isinstance(axis, str) and axis not in axes
        for name in _IDENTIFIER.findall(axis)
    }
    return frozenset(axes - fixed - computed - {contract.batch_axis})


@dataclass(slots=True)
class _Entry:
    """One valid request, or part of one."""

    index: int
    inputs: Arrays
    sizes: Sizes


@dataclass(slots=True)
class Batcher:
    """Runs requests in as few model calls as their shapes allow.

    Attributes:
        contract: The model's contract.
        run: Calls the model once.
        allow_non_finite: Whether NaN and infinity are allowed in inputs.
        joins: Whether requests are batched; otherwise each has its own call. Permanently disabled
            if outputs have other rows than inputs: such a model mixes or filters its rows.
        sample: Inputs that the model has taken, of a golden case; empty without any.
        on_mixed: Called then with the reason.
        on_joined: Called with the inputs and outputs of one request of each batch.
    """

    contract: Contract
    run: RunModel
    allow_non_finite: bool = False
    joins: bool = True
    sample: Arrays = field(default_factory=dict)
    on_mixed: Callable[[str], None] | None = None
    on_joined: Callable[[Arrays, Arrays], None] | None = None
    _paddable: frozenset[str] = field(init=False)
    _checks: list[tuple[str, int, list[tuple[int, str]]]] = field(init=False)
    _buffers: dict[str, Array] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._paddable = paddable_axes(self.contract)
        cut = self._paddable | {self.contract.batch_axis}
        self._checks = [
            (
                spec.name,
                len(spec.shape),
                [(i, str(a)) for i, a in enumerate(spec.shape) if a in cut],
            )
            for spec in self.contract.outputs
        ]

    def __call__(self, requests: Sequence[Arrays | MarshipError]) -> list[Arrays | MarshipError]:
        """The outputs or the error of each request, in order.

        A request that is an error already is returned unchanged.
        """
        results: list[Arrays | MarshipError | None] = [None] * len(requests)
        groups: dict[object, list[_Entry]] = {}
        for index, request in enumerate(requests):
            if isinstance(request, MarshipError):
                results[index] = request
                continue
            try:
                inputs = conform(request, self.contract)
                sizes = validate(inputs, self.contract, allow_non_finite=self.allow_non_finite)
            except Exception as error:  # of this request alone
                results[index] = bare(_marships(error))
                continue
            groups.setdefault(self._group(index, sizes), []).append(_Entry(index, inputs, sizes))
        for group in groups.values():
            for entries in self._calls(group):
                for entry, result in self._run_entries(entries):
                    results[entry.index] = result
        return [result for result in results if result is not None]

    def run_parts(
        self, requests: Sequence[Arrays | Parts | MarshipError]
    ) -> list[Arrays | Parts | MarshipError]:
        """Like a call, but a request may have several parts, which give a list of results."""
        flat = [part for r in requests for part in (r if isinstance(r, list) else (r,))]
        results = iter(self(flat))
        return [
            [next(results) for _ in request] if isinstance(request, list) else next(results)
            for request in requests
        ]

    def _group(self, index: int, sizes: Sizes) -> object:
        """A key; requests with equal keys can be batched."""
        if self.contract.batch_axis is None or not self.joins:
            return index
        free = self._paddable | {self.contract.batch_axis}
        return tuple(sorted((a, size) for a, size in sizes.items() if a not in free))

    def _calls(self, group: list[_Entry]) -> Iterator[list[_Entry]]:
        """Split a group into calls of at most the batch axis's upper bound of rows."""
        batch = self.contract.batch_axis or ""
        most = self.contract.bounds.get(batch, (1, None))[1]
        if most is None or len(group) == 1:
            yield group
            return
        call: list[_Entry] = []
        rows = 0
        for entry in group:
            if call and rows + entry.sizes[batch] > most:
                yield call
                call, rows = [], 0
            call.append(entry)
            rows += entry.sizes[batch]
        yield call

    def _run_entries(self, entries: list[_Entry]) -> Iterator[tuple[_Entry, Arrays | MarshipError]]:
        """Run entries as a batch; if that fails, bisect to isolate the failing one."""
        if len(entries) > 1 and not self.joins:
            yield from self._each(entries)
            return
        sizes = self._sizes(entries)
        try:
            outputs = self.run(self._stack(entries, sizes))
        except (
            Exception
        ) as error:  # memory errors, too: a large request must not fail its neighbours
            if len(entries) == 1:
                yield entries[0], self._alone(entries[0], _marships(error))
                return
            middle = len(entries) // 2
            yield from self._run_entries(entries[:middle])
            yield from self._run_entries(entries[middle:])
            return
        if self.has_mixed(outputs, sizes) and len(entries) > 1:
            yield from self._each(entries)
            return
        yield from self._split(entries, outputs)

    def _alone(self, entry: _Entry, error: MarshipError) -> Arrays | MarshipError:
        """The result of a request whose call failed: the server's error, or the request's own.

        It is the request's if the call fails again, while the model still takes a golden case:
        indices beyond a tensor of this request, sizes that do not fit, more memory than there is.
        """
        if not self.sample or not isinstance(error, ModelError):
            return error
        try:
            return self.run(entry.inputs)
        except Exception as again:  # as the first time
            error = _marships(again)
        try:
            self.run(self.sample)
        except Exception:  # the model runs on nothing any more
            return error
        return _refusal(error)

    def _each(self, entries: list[_Entry]) -> Iterator[tuple[_Entry, Arrays | MarshipError]]:
        for entry in entries:
            yield from self._run_entries([entry])

    def has_mixed(self, outputs: Arrays, sizes: Sizes) -> bool:
        """Whether outputs have other rows, or lengths, than the inputs; disables batching then.

        Such outputs cannot be split by request, whatever was proven before.
        """
        if not self.joins or self.contract.batch_axis is None:
            return False
        for name, axes, cut in self._checks:
            got = outputs[name].shape
            if len(got) != axes or any(sizes.get(axis, got[at]) != got[at] for at, axis in cut):
                self._end_joining(f"output {name} came as {list(got)} where the inputs had {sizes}")
                return True
        return False

    def _end_joining(self, reason: str) -> None:
        self.joins = False
        if self.on_mixed is not None:
            self.on_mixed(reason)

    def _sizes(self, entries: list[_Entry]) -> Sizes:
        """Sizes of the variable axes of one call for all entries."""
        sizes = dict(entries[0].sizes)
        if len(entries) > 1:
            for axis in sizes.keys() & self._paddable:
                sizes[axis] = max(entry.sizes[axis] for entry in entries)
            batch = self.contract.batch_axis or ""
            sizes[batch] = sum(entry.sizes[batch] for entry in entries)
        return sizes

    def _stack(self, entries: list[_Entry], sizes: Sizes) -> Arrays:
        if len(entries) == 1:
            return entries[0].inputs
        return {
            spec.name: self._join(spec, [entry.inputs[spec.name] for entry in entries], sizes)
            for spec in self.contract.inputs
        }

    def _join(self, spec: TensorSpec, arrays: Sequence[Array], sizes: Sizes) -> Array:
        """Concatenate the rows of all arrays, short ones padded on the right."""
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
        joined = self._buffer(spec, shape)
        if any(array.shape[1:] != shape[1:] for array in arrays):
            joined.fill(spec.pad_value)
        start = 0
        for array in arrays:
            place = (slice(start, start + len(array)), *(slice(size) for size in array.shape[1:]))
            joined[place] = array
            start += len(array)
        return joined

    def _buffer(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        """An array for one call, of the contract's type.

        For numbers memory is reused: fresh pages cost more than copying.
        """
        if spec.dtype == "str":
            return np.empty(shape, dtype=object)
        size = math.prod(shape)
        kept = self._buffers.get(spec.name)
        if kept is None or kept.size < size:
            kept = self._buffers[spec.name] = np.empty(size, spec.dtype)
        return kept[:size].reshape(shape)

    def _split(self, entries: list[_Entry], outputs: Arrays) -> Iterator[tuple[_Entry, Arrays]]:
        if len(entries) == 1:
            yield entries[0], outputs
            return
        start = 0
        on_joined = self.on_joined  # another thread may reset it
        sampled = int(random.random() * len(entries)) if on_joined else -1  # noqa: S311  no secret
        for place, entry in enumerate(entries):
            stop = start + entry.sizes[self.contract.batch_axis or ""]
            part = {
                spec.name: outputs[spec.name][
                    (slice(start, stop), *self._unpadded(spec, entry.sizes))
                ]
                for spec in self.contract.outputs
            }
            if place == sampled and on_joined:
                on_joined(entry.inputs, part)
            yield entry, part
            start = stop

    def _unpadded(self, spec: TensorSpec, sizes: Sizes) -> tuple[slice, ...]:
        return tuple(
            slice(sizes[axis]) if axis in self._paddable and isinstance(axis, str) else slice(None)
            for axis in spec.shape[1:]
        )
