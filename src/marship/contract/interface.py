"""A model's inputs, outputs and bounds, as `contract.json` states them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from marship.contract.tolerance import Tolerance
from marship.errors import ModelError

CONTRACT_FILE = "contract.json"
FORMAT = 1
_MOST_SIZE = 1 << 62
_MOST_NAMED = 5
_DTYPES = {"str", "bool", "float16", "float32", "float64"} | {
    f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True, slots=True)
class Widened:
    """How a type that NumPy lacks is served.

    Attributes:
        dtype: A type that holds all its values, by NumPy's name.
        low: Its smallest finite value.
        high: Its largest finite value.
        has_infinity: Whether it has infinities beside them.
    """

    dtype: str
    low: float
    high: float
    has_infinity: bool = False


WIDENED: Mapping[str, Widened] = {
    "bfloat16": Widened("float32", -(2.0**128 - 2.0**120), 2.0**128 - 2.0**120, True),
    "float8_e4m3fn": Widened("float32", -448, 448),
    "float8_e4m3fnuz": Widened("float32", -240, 240),
    "float8_e5m2": Widened("float32", -57344, 57344, True),
    "float8_e5m2fnuz": Widened("float32", -57344, 57344),
    "float8_e8m0fnu": Widened("float32", 2.0**-127, 2.0**127),
    "int4": Widened("int8", -8, 7),
    "uint4": Widened("uint8", 0, 15),
    "int2": Widened("int8", -2, 1),
    "uint2": Widened("uint8", 0, 3),
}
"""Types of ONNX by their names in ml_dtypes."""


@dataclass(frozen=True, slots=True)
class ColumnRange:
    """The range of the values at one place of an input, such as `input[:, 3]`.

    Attributes:
        axis: The axis that is divided; it has a fixed size.
        place: The index along that axis, from 0.
        low: The smallest value.
        high: The largest value, inclusive.
    """

    axis: int
    place: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: The tensor's name in the graph.
        dtype: Its NumPy dtype name; "str" for ONNX strings.
        shape: Sizes; a string names an axis of variable size, and one name is one size
            within a request.
        pad_value: Inputs only. Every variable axis but the batch may be padded on the right
            with this value without changing the outputs (proven at export).
        value_range: Inputs that index a table, and integers up to which an export agrees with
            PyTorch: the smallest and the largest value, both inclusive. None if there is no such
            limit. Floats are truncated to indices.
        column_ranges: The same for columns that index tables of their own.
        takes_missing: Inputs only. Whether a value may be missing: NaN, which is null in JSON.
        full_columns: Inputs that take missing values only: the places along the last axis, which
            has a fixed size, at which none may be missing.
        labels: Outputs only. The classes along the last axis, by whose names JSON responses give
            the values; empty for plain tensors.
        narrow: The type in the file that was packed, one of WIDENED, if NumPy lacks it; else empty.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    pad_value: float | None = None
    value_range: tuple[int, int] | None = None
    column_ranges: tuple[ColumnRange, ...] = ()
    takes_missing: bool = False
    full_columns: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    narrow: str = ""

    def __str__(self) -> str:
        """`name: dtype[batch, 10]`, as tables show it."""
        return f"{self.name}: {self.form}"

    @property
    def form(self) -> str:
        """`dtype[batch, 10]`, as error messages show it."""
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def column(self, axis: int, place: int) -> str:
        """`name[:, 3]`, as messages show a column."""
        index = [":"] * len(self.shape)
        index[axis] = str(place)
        return f"{self.name}[{', '.join(index)}]"

    @property
    def missing_in(self) -> str:
        """`name`, or `name[:, 3], name[:, 5]`, as messages show where values may be missing."""
        if not self.full_columns:
            return self.name
        last, full = len(self.shape) - 1, set(self.full_columns)
        some = (place for place in range(int(self.shape[last])) if place not in full)
        names = [self.column(last, place) for place in islice(some, _MOST_NAMED + 1)]
        return ", ".join(names[:_MOST_NAMED] + ["..."] * (len(names) > _MOST_NAMED))


@dataclass(frozen=True, slots=True)
class Library:
    """A library of custom operators: native code, which is run when the model loads.

    Attributes:
        file: Its name in `LIBRARIES_FOLDER` of the archive.
        sha256: The digest of its bytes, in hexadecimal.
        platform: What it was built for, such as `linux-x86_64`.
    """

    file: str
    sha256: str
    platform: str

    def __str__(self) -> str:
        return f"{self.file} for {self.platform}, SHA-256 {self.sha256}"


@dataclass(frozen=True, slots=True)
class Contract:
    """A model's inputs, outputs and bounds.

    Attributes:
        inputs: In the graph's order.
        outputs: In the graph's order.
        files: The ONNX file and then those of its external data, all in one folder.
        digest: SHA-256 over the bytes of `files`, in hexadecimal.
        opset: Version of the default ONNX operator set; 0 if the file uses others only.
        batch_axis: Name of the first axis that all inputs and outputs share, if rows were
            proven independent; None if requests must not be batched.
        bounds: Smallest and largest size of each variable axis, by name; None is unbounded.
        steps: By name, axes whose size must be a multiple of a number, and that number.
        tolerance: How much a served output may differ from the reference output.
        libraries: Of custom operators, which ONNX Runtime must have to load the model.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[str, ...]
    digest: str
    opset: int
    batch_axis: str | None = None
    bounds: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    tolerance: Tolerance = field(default_factory=Tolerance)
    steps: Mapping[str, int] = field(default_factory=dict)
    libraries: tuple[Library, ...] = ()

    def size_rule(self, axis: str) -> str:
        """The sizes of a variable axis, such as `at least 16 and a multiple of 16`."""
        low, high = self.bounds.get(axis, (1, None))
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        step = self.steps.get(axis, 1)
        return limit if step == 1 else f"{limit} and a multiple of {step}"

    def takes_size(self, axis: str, size: int) -> bool:
        """Whether a variable axis may have this size."""
        low, high = self.bounds.get(axis, (1, None))
        return low <= size and (high is None or size <= high) and not size % self.steps.get(axis, 1)

    @property
    def least_rows(self) -> int:
        """The fewest rows of a request, at least 1: those of the smallest batch."""
        axis = self.batch_axis or ""
        low, step = self.bounds.get(axis, (1, None))[0], self.steps.get(axis, 1)
        return max(-(-low // step), 1) * step

    def to_json(self) -> str:
        """The text of `contract.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Contract":
        """Read what `to_json` wrote.

        Raises:
            ModelError: The text is not a contract of a format that this version reads.
        """
        try:
            raw = json.loads(text)
            if raw.pop("format") != FORMAT:
                raise ModelError(
                    f"{CONTRACT_FILE} must have format {FORMAT}. Export the model again."
                )
            _check_types(raw)
            return cls(
                **{
                    **raw,
                    "inputs": tuple(map(_spec, raw["inputs"])),
                    "outputs": tuple(map(_spec, raw["outputs"])),
                    "files": tuple(raw["files"]),
                    "bounds": {name: (low, high) for name, (low, high) in raw["bounds"].items()},
                    "tolerance": Tolerance(**raw["tolerance"]),
                    "libraries": tuple(Library(**one) for one in raw.get("libraries", ())),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{CONTRACT_FILE} must be a contract, got {error!r}. Export the model again."
            ) from error


def _check_types(raw: Mapping[str, Any]) -> None:
    """Check JSON against the annotations of `Contract`, on which all its users rely.

    Raises:
        TypeError: A value is of another type.
        ValueError: A size is negative, a bound is empty, a dtype is not supported, or
            a file is in another folder.
    """
    for name, hint in get_type_hints(Contract).items():
        if name in raw and not _fits(raw[name], hint):
            raise TypeError(f"{name} of another type")
    for spec in (*raw["inputs"], *raw["outputs"]):
        _check_spec(spec)
    batch = raw.get("batch_axis")
    specs = (*raw["inputs"], *raw["outputs"])
    if batch is not None and any(spec["shape"][:1] != [batch] for spec in specs):
        raise ValueError(f"batch_axis {batch}, which must be the first axis of all tensors")
    for axis, (low, high) in raw["bounds"].items():
        if not 0 <= low <= (_MOST_SIZE if high is None else high) <= _MOST_SIZE:
            raise ValueError(f"bounds of {axis} from {low} to {high}")
    if not all(1 <= step <= _MOST_SIZE for step in raw.get("steps", {}).values()):
        raise ValueError(f"steps {raw['steps']}")
    _check_files(raw["files"], [library["file"] for library in raw.get("libraries", ())])
    if not all(math.isfinite(raw["tolerance"][kind]) for kind in ("atol", "rtol")):
        raise ValueError("a tolerance that is not finite")


def _check_files(files: Sequence[str], libraries: Sequence[str]) -> None:
    names = [*files, *libraries]
    if not files or any(Path(name).name != name or "\0" in name for name in names):
        raise ValueError(f"files {names!r}, which must lie in one folder")


def _check_spec(spec: Mapping[str, Any]) -> None:
    if spec["dtype"] not in _DTYPES:
        raise ValueError(f"{spec['name']} of type {spec['dtype']}")
    if any(isinstance(axis, int) and not 0 <= axis < _MOST_SIZE for axis in spec["shape"]):
        raise ValueError(f"{spec['name']} of shape {spec['shape']}")
    narrow = spec.get("narrow", "")
    if narrow and (narrow not in WIDENED or WIDENED[narrow].dtype != spec["dtype"]):
        raise ValueError(f"{spec['name']} of type {spec['dtype']} for {narrow}")
    labels = spec.get("labels", [])
    is_plain = spec["dtype"] != "str" and spec["shape"][-1:] == [len(labels)]
    if labels and not (is_plain and len(spec["shape"]) <= 2 and len(set(labels)) == len(labels)):  # noqa: PLR2004  rows of a table
        raise ValueError(f"{spec['name']} with {len(labels)} labels of its last axis")
    columns = spec["shape"][-1] if spec["shape"] else 1
    if not all(isinstance(columns, int) and 0 <= n < columns for n in spec.get("full_columns", ())):
        raise ValueError(f"{spec['name']} with full columns that it does not have")
    for column in spec.get("column_ranges", ()):
        axis = column["axis"]
        size = spec["shape"][axis] if 0 <= axis < len(spec["shape"]) else None
        fits = isinstance(size, int) and 0 <= column["place"] < size
        if not fits or max(abs(column["low"]), abs(column["high"])) > _MOST_SIZE:
            raise ValueError(f"{spec['name']} with a range of column {column['place']}")


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401  a type, or a form of types
    """Whether a JSON value matches an annotation; arrays are tuples, objects are dataclasses."""
    parts, form = get_args(hint), get_origin(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in parts)
    if form is tuple:
        kinds = parts
        if isinstance(value, list) and parts[1:] == (...,):
            kinds = parts[:1] * len(value)
        return (
            isinstance(value, list) and len(kinds) == len(value) and all(map(_fits, value, kinds))
        )
    if is_dataclass(hint) or form is not None:  # else a mapping
        if not isinstance(value, dict):
            return False
        hints = get_type_hints(hint) if form is None else dict.fromkeys(value, parts[-1])
        return all(name in hints and _fits(item, hints[name]) for name, item in value.items())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _spec(fields: dict[str, Any]) -> TensorSpec:
    value_range = fields.get("value_range")
    return TensorSpec(
        **{
            **fields,
            "shape": tuple(fields["shape"]),
            "value_range": None if value_range is None else (value_range[0], value_range[1]),
            "column_ranges": tuple(ColumnRange(**c) for c in fields.get("column_ranges", ())),
            "full_columns": tuple(fields.get("full_columns", ())),
            "labels": tuple(fields.get("labels", ())),
        }
    )
