"""A model as steps of the protocol, without its weights: what all parties and clients may know.

Values are flat rows, `size` words each: value 0 is the input, value n + 1 the result of step n.

    linear      x W / 2^13 + b: `positions` products of `taps` values with (taps, width)
    scale       x w / 2^13 + b, element by element
    relu        max(x, 0)
    maximum     the largest of each window, or of two values
    average     the mean of each window
    sum         x + y
    difference  x - y
    multiply    x y / 2^13
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from marship.errors import LoadError
from marship.serving.private.mpc.ring import FRACTION_BITS, Words

FORMAT = 1
OPERATIONS = ("linear", "scale", "relu", "maximum", "average", "sum", "difference", "multiply")
RESCALED = ("linear", "scale", "average", "multiply")
FACTOR_ERROR = 2.0**-11
"""The largest relative error of a mean's factor: it would be a bias."""
_PRODUCT_BYTES, _COMPARE_BYTES = 48, 160
"""Of an element: windows of two shares and their copy; and what a comparison has at once."""
BATCH_BYTES = 1 << 28
"""What rows that are computed together take at a party, unless a single one takes more."""
MOST_ROWS = 256
_MOST_STEPS, _MOST_SIZE = 1000, 1 << 24


@dataclass(frozen=True)
class Gathering:
    """Which elements of a picture, or of any channels with axes, each result is made of.

    Attributes:
        shape: Of the value: channels, then the axes.
        kernel: Along each axis.
        strides: Likewise.
        pads: Before the first element of each axis, then behind the last.
        dilations: Along each axis.
        joins_channels: Whether a result takes all channels, as a convolution's does.
        repeats: Whether a place in the padding repeats an element of the window, for a maximum;
            else it is 0.
    """

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    joins_channels: bool
    repeats: bool = False

    @property
    def places(self) -> tuple[int, ...]:
        """The sizes of the result's axes."""
        axes = len(self.kernel)
        return tuple(
            (size + self.pads[n] + self.pads[n + axes] - self.dilations[n] * (k - 1) - 1)
            // self.strides[n]
            + 1
            for n, (size, k) in enumerate(zip(self.shape[1:], self.kernel, strict=True))
        )

    @property
    def counts(self) -> tuple[int, int]:
        """Positions and taps, the shape of `index`."""
        channels, taps, places = self.shape[0], prod(self.kernel), prod(self.places)
        if self.joins_channels:
            return places, channels * taps
        return channels * places, taps

    @cached_property
    def taken(self) -> npt.NDArray[np.int64]:
        """Elements at each position that are no padding, at least 1."""
        taken: npt.NDArray[np.int64] = (self.index < prod(self.shape)).sum(1)
        return np.maximum(taken, 1)

    @property
    def chunks(self) -> int:
        """Sums of each window, of 2^13 elements at most, that a mean divides by 2^13 first.

        A sum of more would have more bits than a rescaling takes; 1 where it has not.
        """
        return -(-self.counts[1] // (1 << FRACTION_BITS))

    @cached_property
    def factors(self) -> tuple[Words, ...]:
        """Words by which a mean multiplies its sums, a rescaling after each.

        One, 2^13 / n, if that is a number whole enough; else an exact power of two first, and a
        factor between 1 and 2 behind it.
        """
        taken = self.taken / (1 << FRACTION_BITS) if self.chunks > 1 else self.taken
        one = np.round((1 << FRACTION_BITS) / taken)
        if (np.abs(one * taken / (1 << FRACTION_BITS) - 1) <= FACTOR_ERROR).all():
            return (one.astype(np.uint64),)
        shift = np.ceil(np.log2(taken))
        rest = np.round((1 << FRACTION_BITS) * 2.0**shift / taken)
        return (2.0 ** (FRACTION_BITS - shift)).astype(np.uint64), rest.astype(np.uint64)

    @cached_property
    def index(self) -> npt.NDArray[np.int64]:
        """The element at each position and tap; `prod(shape)` is one more element, 0."""
        flat = np.zeros((1, 1), np.int64)
        inside = np.ones((1, 1), bool)
        for n, size in enumerate(self.shape[1:]):
            starts = np.arange(self.places[n]) * self.strides[n] - self.pads[n]
            found = starts[:, None] + np.arange(self.kernel[n]) * self.dilations[n]
            is_in = (found >= 0) & (found < size)
            flat = _outer(np.add, flat * size, np.clip(found, 0, size - 1))
            inside = _outer(np.logical_and, inside, is_in)
        area = prod(self.shape[1:])
        channels = np.arange(self.shape[0])[:, None, None] * area
        if self.repeats:
            first = np.take_along_axis(flat, inside.argmax(1)[:, None], 1)
            flat = np.where(inside, flat, first)
        every = np.broadcast_to(channels + flat, (self.shape[0], *flat.shape))
        if not self.repeats:
            every = np.where(inside, every, self.shape[0] * area)
        if self.joins_channels:
            return every.transpose(1, 0, 2).reshape(len(flat), -1)
        return every.reshape(-1, flat.shape[1])


def _outer(combine: Any, left: Any, right: Any) -> Any:  # noqa: ANN401  index arrays
    """Positions and taps of one more axis: (p, t) and (q, s) to (p q, t s)."""
    both = combine(left[:, None, :, None], right[None, :, None, :])
    return both.reshape(left.shape[0] * right.shape[0], -1)


@dataclass(frozen=True)
class ProgramStep:
    """One operation.

    Attributes:
        operation: One of `OPERATIONS`.
        inputs: Its values.
        size: Elements of a row of the result.
        window: What it gathers first; None takes the value as it is.
        positions: Of a linear step: products with the same weights.
        taps: Of a linear step: elements of each product.
        is_channelled: Of a linear step: whether the result has its channels first.
    """

    operation: str
    inputs: tuple[int, ...]
    size: int
    window: Gathering | None = None
    positions: int = 1
    taps: int = 0
    is_channelled: bool = False

    @property
    def width(self) -> int:
        """Results of each product of a linear step."""
        return self.size // self.positions

    def weights(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of its weights."""
        if self.operation == "linear":
            return (self.taps, self.width), (self.width,)
        return ((self.size,), (self.size,)) if self.operation == "scale" else ()

    @property
    def row_bytes(self) -> int:
        """About the memory that a party takes for a row of this step, beside its values."""
        gathered = prod(self.window.counts) if self.window else self.positions * self.taps
        if self.operation in ("linear", "average"):
            return _PRODUCT_BYTES * (gathered + self.size)
        return _COMPARE_BYTES * max(gathered, self.size)

    @property
    def rescalings(self) -> tuple[int, ...]:
        """Elements of each rescaling, one after the other."""
        if self.operation not in RESCALED:
            return ()
        if self.operation != "average" or self.window is None:
            return (self.size,)
        chunks = self.window.chunks
        first = (self.size * chunks,) if chunks > 1 else ()
        return (*first, *(self.size for _ in self.window.factors))


@dataclass(frozen=True)
class Card:
    """What everybody may know of a party.

    Attributes:
        party: Its number.
        address: Host and port at which it waits for the others; party 0 waits for nobody.
        certificate: Its certificate for TLS, in PEM.
        sealing_key: Its X25519 key, 32 bytes in hexadecimal: what is sealed for it opens with the
            other half alone.
    """

    party: int
    address: str
    certificate: str
    sealing_key: str


@dataclass(frozen=True)
class SharedProgram:
    """A model that three parties share.

    Attributes:
        model: Its name.
        version: Its version.
        sharing: Random, in hexadecimal: shares of two packings do not fit.
        input_size: Elements of a row of the input.
        steps: In their order; the last one's result is the output.
        input_limit: No input is larger; the values' bounds were computed for it.
        input_factor: By which clients multiply the input before they share it.
        golden_rows: Rows of the golden case, which is shared, too.
        tolerance: How far its outputs may be from those of the model that was packed.
        cards: Of parties 0, 1 and 2.
        sealed: SHA-256 of each party's sealed shares, in hexadecimal.
    """

    model: str
    version: str
    sharing: str
    input_size: int
    steps: tuple[ProgramStep, ...]
    input_limit: float
    input_factor: float
    golden_rows: int
    tolerance: float
    cards: tuple[Card, ...]
    sealed: tuple[str, ...]

    @property
    def output_size(self) -> int:
        """Elements of a row of the output."""
        return self.steps[-1].size

    @property
    def together(self) -> int:
        """Rows that are computed together: at all parties the same."""
        row = row_bytes(self.input_size, self.steps)
        return max(1, min(MOST_ROWS, BATCH_BYTES // row))

    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of all that is shared: weights by step, then the golden case."""
        weights = [shape for step in self.steps for shape in step.weights()]
        rows = self.golden_rows
        return [*weights, (rows, self.input_size), (rows, self.output_size)]

    def to_json(self) -> bytes:
        """Its bytes; their SHA-256 names the model."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "SharedProgram":
        """Read what `to_json` wrote.

        Raises:
            LoadError: It is not a program of this format.
        """
        try:
            raw = json.loads(data)
            if raw.pop("format") != FORMAT:
                raise ValueError("another format")
            steps = tuple(map(_step, raw["steps"]))
            cards = tuple(Card(**card) for card in raw["cards"])
            found = cls(**{**raw, "steps": steps, "cards": cards, "sealed": tuple(raw["sealed"])})
            _check(found)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise LoadError(
                f"the program of a party must be of format {FORMAT}, got {error!r}. Package the "
                "model again."
            ) from error
        return found


def row_bytes(input_size: int, steps: Sequence[ProgramStep]) -> int:
    """About the memory that a party takes for a row: all values, and the largest step."""
    words = input_size + sum(step.size for step in steps)
    return 2 * 8 * words + max(step.row_bytes for step in steps)


def _step(raw: Mapping[str, Any]) -> ProgramStep:
    window = raw.get("window")
    if window is not None:
        lists: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in window.items()
        }
        window = Gathering(**lists)
    return ProgramStep(**{**raw, "inputs": tuple(raw["inputs"]), "window": window})


def _check(program: SharedProgram) -> None:
    """Check what a party relies on: sizes that fit each other, and are bounded.

    Raises:
        ValueError: Something does not fit.
        TypeError: Something is of another type.
    """
    if len(program.cards) != 3 or len(program.sealed) != 3:  # noqa: PLR2004  parties
        raise ValueError("other than 3 parties")
    if not 1 <= len(program.steps) <= _MOST_STEPS:
        raise ValueError(f"{len(program.steps)} steps")
    sizes = [program.input_size]
    for step in program.steps:
        _check_step(step, sizes)
        sizes.append(step.size)
    counts = (*sizes, program.golden_rows)
    if not all(type(n) is int and 1 <= n <= _MOST_SIZE for n in counts):
        raise ValueError("a size out of bounds")


def _check_step(step: ProgramStep, sizes: Sequence[int]) -> None:
    if step.operation not in OPERATIONS or not all(0 <= n < len(sizes) for n in step.inputs):
        raise ValueError(f"step {len(sizes)}")
    source = sizes[step.inputs[0]]
    window = step.window
    if window is not None:
        axes = len(window.kernel)
        if not (len(window.shape) - 1 == len(window.strides) == len(window.dilations) == axes):
            raise ValueError(f"a window of step {len(sizes)}")
        if len(window.pads) != 2 * axes or prod(window.shape) != source:
            raise ValueError(f"a window of step {len(sizes)}")
        if min(*window.kernel, *window.strides, *window.dilations, *window.places) < 1:
            raise ValueError(f"a window of step {len(sizes)}")
    positions, taps = window.counts if window else (step.positions, source // step.positions)
    expected = {
        "linear": step.positions * step.width if (positions, taps) == _linear(step) else 0,
        "maximum": positions if window else source,
        "average": positions,
        "sum": source,
    }.get(step.operation, source)
    others = {sizes[n] for n in step.inputs[1:]}
    if step.size != expected or others > {source}:
        raise ValueError(f"sizes of step {len(sizes)}")


def _linear(step: ProgramStep) -> tuple[int, int]:
    return step.positions, step.taps
