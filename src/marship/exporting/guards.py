"""Guards: assumptions on sizes that torch makes when tracing a model, and the lines behind them.

A traced graph is only valid where its guards hold. torch.export rejects some of them and turns
others into run-time assertions, which an ONNX file cannot have; assumptions of the conversion's
decompositions are not reported at all. So each guard is recorded as it is created, in both steps,
and checked against the bounds of the variable axes.
"""

import itertools
import linecache
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sympy  # type: ignore[import-untyped]
import torch.fx.traceback
from torch._guards import TracingContext
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from marship.errors import ModelError
from marship.exporting.layout import BATCH, Layout
from marship.proof.cases import allowed

if TYPE_CHECKING:
    from types import FrameType

DENSE = 130
"""Number of sizes, from the smallest on, that are checked one by one: shows multiples up to 64."""
LARGEST_MULTIPLE = 64
LARGEST_SIZE = 1 << 20
"""The upper bound of an unbounded axis."""
FEW = 4
"""Up to this many sizes that a guard excludes are compared with PyTorch instead of rejected. LSTM,
and all that depends on memory layout, excludes 1, and is right there."""
CODE_SHOWN = 100

_SOURCE = re.compile(r"^L\['(?:tensors|flat_args)'\]\[(\d+)\]\.size\(\)\[(\d+)\]$")
_NOT_OWN = ("site-packages", "/lib/python", "<")
_MARSHIP = str(Path(__file__).parents[1])
_ENTRY = str(Path(__file__).with_name("capture.py"))
"""The file whose code calls the user's, perhaps through code of other files in this folder."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of user code."""

    file: str
    line: int

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.line).strip()
        shown = f"`{code[:CODE_SHOWN]}` " if code else ""
        return f"{shown}({Path(self.file).name}, line {self.line})"


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on sizes.

    Attributes:
        condition: An expression of symbols, one for each size.
        sizes: By symbol, the index of the input and the index of its axis.
        place: The line of user code that caused it; None without one.
        is_exact: Whether the graph is wrong at all sizes that it excludes: see `exact`.
    """

    condition: sympy.Basic
    sizes: Mapping[sympy.Symbol, tuple[int, int]]
    place: Place | None
    is_exact: bool = field(default=False, kw_only=True)

    most_tried = DENSE

    @property
    def leaves_out_one(self) -> bool:
        """Whether it excludes 1 for a size computed from others: torch's specialization of 1.

        All input sizes that it excludes lead to that one size, as fewer samples than a frame give
        one frame: a few of them represent all.
        """
        is_other = isinstance(self.condition, sympy.Ne) and 1 in self.condition.args
        return is_other and not any(side.is_Symbol for side in self.condition.args)

    def holds(self, at: Mapping[sympy.Symbol, int]) -> bool:
        """Whether it holds at these sizes; False if it cannot be computed."""
        try:
            return bool(self.condition.xreplace({s: sympy.Integer(n) for s, n in at.items()}))
        except (TypeError, ValueError, ArithmeticError):
            return False


@dataclass(frozen=True, slots=True)
class Doubt:
    """A few sizes of an axis that a guard excludes, at which the graph must be compared."""

    axis: str
    sizes: frozenset[int]
    place: Place | None


_EXACT: ContextVar[bool] = ContextVar("exact", default=False)


@contextmanager
def exact() -> Iterator[None]:
    """Refuse every size that guards created meanwhile exclude, however few there are."""
    token = _EXACT.set(True)
    try:
        yield
    finally:
        _EXACT.reset(token)


@contextmanager
def recorded() -> Iterator[list[Guard]]:
    """Yield a list to which each guard on input sizes is appended when torch creates it."""
    guards: list[Guard] = []
    seen: set[str] = set()
    record = ShapeEnv._log_guard  # all guards go through this method; torch's version is pinned

    def recording(self: Any, prefix: str, g: Any, forcing_spec: bool) -> None:  # noqa: ANN401  the replaced method's signature
        sizes = {} if "suppressed" in prefix or str(g) in seen else sizes_in(self, g)
        if sizes and len(sizes) == len(g.free_symbols):
            seen.add(str(g))
            guards.append(Guard(g, sizes, place(), is_exact=_EXACT.get()))
        record(self, prefix, g, forcing_spec)

    ShapeEnv._log_guard = recording  # type: ignore[method-assign]
    try:
        yield guards
    finally:
        ShapeEnv._log_guard = record  # type: ignore[method-assign]


def sizes_in(env: Any, condition: Any) -> dict[sympy.Symbol, tuple[int, int]]:  # noqa: ANN401  torch's
    """The symbols of a condition that stand for sizes of inputs: input and axis."""
    found = {}
    for symbol in condition.free_symbols:
        for source in env.var_to_sources.get(symbol, ()):
            if match := _SOURCE.match(source.name):
                found[symbol] = int(match[1]), int(match[2])
    return found


def place() -> Place | None:
    """The innermost line of user code: running, traced by dynamo, or recorded in a node."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != _ENTRY:
        if is_own(frame.f_code.co_filename):
            return Place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    stack = [(entry.filename, entry.lineno or 0) for entry in TracingContext.extract_stack()]
    text = "".join(torch.fx.traceback.format_stack())
    text = text.rpartition(_MARSHIP)[2]  # it may be Python's stack, including marship's caller
    stack += [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    own = [Place(file, line) for file, line in stack if is_own(file)]
    return own[-1] if own else None


def is_own(file: str) -> bool:
    """Whether a file is user code: not of a package, of Python or of marship."""
    return not file.startswith(_MARSHIP) and not any(part in file for part in _NOT_OWN)


def check(
    guards: Sequence[Guard], inputs: Sequence[str], layout: Layout, few: int = FEW
) -> list[Doubt]:
    """Check guards against the bounds of the axes.

    Args:
        guards: The recorded guards.
        inputs: The inputs' names in order.
        layout: The variable axes and their bounds.
        few: How many sizes a guard may exclude for them to be compared instead.

    Returns:
        The sizes that guards exclude, where they are few enough to compare each.

    Raises:
        ModelError: The graph is not valid within the whole bounds; the message names the line
            that caused it, and bounds within which it is.
    """
    doubts: list[Doubt] = []
    failed: dict[str, list[_Claim]] = {}
    for guard in guards:
        names = {s: layout.axes[inputs[n]].get(i, "") for s, (n, i) in guard.sizes.items()}
        if not all(names.values()):
            continue  # about an axis of fixed size
        claim = min((_Claim(guard, names, a, layout) for a in names.values()), key=_Claim.width)
        if len(claim.missing) == len(claim.tried):
            raise ModelError(_tied(claim))
        if 0 < len(claim.missing) <= few and not guard.is_exact:
            doubts.append(Doubt(claim.axis, frozenset(claim.missing), guard.place))
        elif claim.missing and few and guard.leaves_out_one:
            ends = (claim.missing[0], claim.missing[len(claim.missing) // 2], claim.missing[-1])
            doubts.append(Doubt(claim.axis, frozenset(ends), guard.place))
        elif claim.missing:
            failed.setdefault(claim.axis, []).append(claim)
    if failed:
        raise ModelError(_violation(failed, layout))
    return doubts


class _Claim:
    """A guard as a condition on one axis: the sizes at which it holds for all others.

    Attributes:
        tried: The checked sizes of the axis, sorted.
        missing: Those at which the guard does not hold for some sizes of other axes.
    """

    def __init__(
        self, guard: Guard, names: Mapping[sympy.Symbol, str], axis: str, layout: Layout
    ) -> None:
        self.guard, self.names, self.axis = guard, names, axis
        others = sorted(set(names.values()) - {axis})
        few = itertools.product(*(_few(layout, other) for other in others))
        self.rest = [dict(zip(others, sizes, strict=True)) for sizes in few]
        self.tried = _tried(layout, axis, guard)
        self.missing = [n for n in self.tried if not self.holds(n)]

    def width(self) -> int:
        return len(self.missing)

    def holds(self, size: int) -> bool:
        """Whether the guard holds at this size of the axis; False if it cannot be computed."""
        return all(self._holds({**rest, self.axis: size}) for rest in self.rest)

    def _holds(self, sizes: Mapping[str, int]) -> bool:
        return self.guard.holds({symbol: sizes[name] for symbol, name in self.names.items()})


def _bounds(layout: Layout, axis: str) -> tuple[int, int]:
    low, high = layout.bounds.get(axis, (1, None))
    return low, LARGEST_SIZE if high is None else high


def _few(layout: Layout, axis: str) -> list[int]:
    """A few sizes, except 1, of an axis other than the one being checked."""
    high = _bounds(layout, axis)[1]
    return sorted({allowed(layout, axis, size) for size in (3, 8, high)})


def _tried(layout: Layout, axis: str, guard: Guard) -> list[int]:
    """The smallest sizes one by one, sizes near the guard's constants, and the largest."""
    low, high = _bounds(layout, axis)
    step = layout.steps.get(axis, 1)
    most = min(high, low + guard.most_tried * step)
    tried = {*range(low, most + 1, step), allowed(layout, axis, high)}
    numbers = {abs(int(number)) for number in guard.condition.atoms(sympy.Integer)} | {1}
    for number, share in itertools.product(numbers, numbers - {0}):
        edge = number // share
        tried |= {edge - edge % step + step * side for side in (-1, 0, 1)}
    return sorted(size for size in tried if low <= size <= high and size % step == 0)


def _tied(claim: _Claim) -> str:
    condition = claim.guard.condition.xreplace(
        {symbol: sympy.Symbol(name) for symbol, name in claim.names.items()}
    )
    return (
        f"axes {' and '.join(sorted(set(claim.names.values())))} must vary independently, got a "
        f"forward whose graph holds only where {condition}{_because([claim])}. Give them one name "
        "if they are always of one size, or compute forward without that condition."
    )


def _violation(failed: Mapping[str, Sequence[_Claim]], layout: Layout) -> str:
    """Which axes are restricted to which sizes, by which line, and what to do, in one line."""
    what, fixes = [], []
    for axis, claims in failed.items():
        where, fix = _where(axis, claims, layout)
        low, high = layout.bounds.get(axis, (1, None))
        what.append(
            f"axis {axis} must be variable from {low} {f'to {high}' if high else 'on'}, got a "
            f"forward whose graph holds {where} only{_because(claims)}"
        )
        fixes.append(fix)
    return (
        f"{'; '.join(what)}. Compute it alike for all sizes, from the shape, without if, int(), "
        "len(), floats (not n * 0.7 but n * 7 // 10) or a Python loop over it; or state "
        f"{' '.join(fixes)}."
    )


def _because(claims: Sequence[_Claim]) -> str:
    places = [claim.guard.place for claim in claims if claim.guard.place is not None]
    return f", because of {places[0]}" if places else ""


def _where(axis: str, claims: Sequence[_Claim], layout: Layout) -> tuple[str, str]:
    """Where the graph is valid, in words, and the flag that states it."""

    def holds(size: int) -> bool:
        return all(claim.holds(size) for claim in claims)

    tried = sorted({size for claim in claims for size in claim.tried})
    held = [size for size in tried if holds(size)]
    if not held:
        return "at no size", "--fixed-batch" if axis == BATCH else "an axis of one size"
    dense = tried[: DENSE + 1]
    # before looking for runs: beyond the dense sizes a few valid ones would look like a run
    multiple = _multiple(dense, set(held))
    if multiple is not None:
        return _of_multiple(axis, multiple, held, layout)
    step = layout.steps.get(axis, 1)
    at = 0 if axis == BATCH else layout.sizes.get(axis, 0)
    low, high = max(
        _runs(tried, holds, step), key=lambda run: (run[0] <= at <= run[1], run[1] - run[0])
    )  # bounds without the example's size would be refused in their turn
    unbounded = high == tried[-1] and layout.bounds.get(axis, (1, None))[1] is None
    end = "" if unbounded else str(high)
    flag = f"--bounds {axis}={low}:{end}{f':{step}' if step > 1 else ''}"
    if axis == BATCH and low == high:
        flag += " (or the example's own with --fixed-batch)"
    if low == high:
        return f"at {low}", flag
    return (f"from {low} on" if unbounded else f"from {low} to {high}"), flag


def _of_multiple(axis: str, multiple: int, held: Sequence[int], layout: Layout) -> tuple[str, str]:
    """Where a graph is valid that takes multiples of a number, and the flag that states it."""
    first, rest = held[0], held[0] % multiple
    if rest:
        size = layout.sizes.get(axis, held[-1])
        flag = "--fixed-batch" if axis == BATCH else f"--bounds {axis}={size}:{size}"
        return f"at multiples of {multiple} plus {rest}", flag
    high = layout.bounds.get(axis, (1, None))[1]
    last = "" if high is None else high - high % multiple
    return f"at multiples of {multiple}", f"--bounds {axis}={first}:{last}:{multiple}"


def _runs(
    tried: Sequence[int], holds: Callable[[int], bool], step: int
) -> Iterator[tuple[int, int]]:
    """First and last size of each run of valid sizes; edges between checked sizes are searched."""
    start, last = None, 0
    for size in tried:
        if holds(size):
            if start is None:
                start = _edge(size, last, holds, step) if last else size
        elif start is not None:
            yield start, _edge(last, size, holds, step)
            start = None
        last = size
    if start is not None:
        yield start, last


def _edge(held: int, not_held: int, holds: Callable[[int], bool], step: int) -> int:
    """The last valid size between a valid one and an invalid one, by bisection."""
    while abs(not_held - held) > step:
        middle = (held + not_held) // 2 // step * step
        if holds(middle):
            held = middle
        else:
            not_held = middle
    return held


def _multiple(dense: Sequence[int], held: set[int]) -> int | None:
    """The common step of the valid sizes, if there is one."""
    first = min(held)
    if len(held & set(dense)) == 1:
        return None
    for step in range(2, LARGEST_MULTIPLE + 1):
        if {n for n in dense if (n - first) % step == 0} == held & set(dense):
            return step
    return None
