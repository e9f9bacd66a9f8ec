"""Reads, checks and describes an ONNX file.

Nothing here runs the model.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from marship import texts
from marship.contract import Array, Contract, TensorSpec, digest_files
from marship.contract.tolerance import Tolerance
from marship.errors import ModelError, UsageError
from marship.proof import operators
from marship.proof.cases import clipped
from marship.proof.indices import index_ranges
from marship.proof.words import with_known

_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "str",
}


_KEEPING = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear")
"""Operators that give the values that they get, but for rounding."""
_NAMELESS = ("", "?", "-1", "None")


def read(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Args:
        path: The file.
        weights: Also read external data into the model.

    Raises:
        UsageError: The file does not exist.
        ModelError: The file is not a valid ONNX model.
    """
    if not path.is_file():
        raise UsageError(f"{path} must be an ONNX file, got no such file.")
    external_files(path)
    with _refusing(path):
        onnx.checker.check_model(str(path))  # by path, which is required for models above 2 GB
        return onnx.load(str(path), load_external_data=weights)


def parsed(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without checking it, or reading its external data.

    Raises:
        ModelError: It is no ONNX file.
    """
    with _refusing(path):
        return onnx.load(str(path), load_external_data=False)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (onnx.checker.ValidationError, DecodeError, ValueError, OSError) as error:
        if texts.is_lfs_pointer(path):
            raise ModelError(
                f"{path} must be an ONNX model, got a pointer of Git LFS. Fetch the file: git lfs "
                f"pull --include={path.name}"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"{path} must be a valid ONNX model, got: {reason.rstrip('. ')}. Export it again."
        ) from error


def external_files(path: Path) -> dict[str, Path]:
    """The files with external data by the location that the model states, in order of first use.

    A link may also lead to where the model's own does, as in the hub's cache, whose files are links
    into one folder. Others could take a file of the user's into an archive.

    Raises:
        ModelError: A location is no file in the model's folder or below it.
    """
    folder = path.parent.resolve()
    found: dict[str, Path] = {}
    for tensor in onnx.external_data_helper._get_all_tensors(parsed(path)):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            place = path.parent / entry.value
            leaves = Path(entry.value).is_absolute() or ".." in Path(entry.value).parts
            end = place.resolve()
            is_near = end.is_relative_to(folder) or end.parent == path.resolve().parent
            if not leaves and is_near and not place.exists():
                raise ModelError(
                    f"{path.name} must have its external data beside it, got no {entry.value}. "
                    f"Copy that file to {path.parent}."
                )
            if leaves or not is_near or not place.is_file():
                raise ModelError(
                    f"external data of {path.name} must lie in its folder, got {entry.value!r}. "
                    "Move it there, or save the model again with its data beside it."
                )
            found[entry.value] = place
    return found


def relocated(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """The model, changed to find its external data under other names, by location."""
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names[entry.value]
    return model


def digest(path: Path) -> str:
    """SHA-256 of the model file and its external data, in hexadecimal."""
    return digest_files(path, *external_files(path).values())


def contract_of(  # noqa: PLR0913  the fields of a contract
    path: Path,
    *,
    pad_values: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[int, int | None]] | None = None,
    steps: Mapping[str, int] | None = None,
    tolerance: Tolerance | None = None,
    labels: Mapping[str, tuple[str, ...]] | None = None,
    narrow: Mapping[str, str] | None = None,
) -> Contract:
    """The contract as declared by the graph; without what must be proven.

    `batch_axis` is None: only running the model can show that rows are independent. `narrow` are
    the types of tensors that were widened, by name.

    Raises:
        ModelError: The file is invalid, or a tensor has an unsupported type.
    """
    model = read(path)
    pads, names, types = dict(pad_values or {}), dict(labels or {}), dict(narrow or {})
    taken = _axis_names(model)
    inputs = (
        replace(_narrowed(spec, types), pad_value=pads.get(spec.name)) for spec in inputs_of(model)
    )
    outputs = tuple(
        replace(_narrowed(_spec("output", value, taken), types), labels=names.get(value.name, ()))
        for value in model.graph.output
    )
    versions = (e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    files = (path, *external_files(path).values())
    return Contract(
        inputs=tuple(inputs),
        outputs=outputs,
        files=tuple(file.name for file in files),
        digest=digest_files(*files),
        opset=next(versions, 0),
        bounds=dict(bounds or {}),
        steps=dict(steps or {}),
        tolerance=tolerance or Tolerance(),
    )


def inputs_of(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs as the graph declares them; initializers are constants.

    Raises:
        ModelError: One has an unsupported type, or no shape.
    """
    ranges, taken = index_ranges(model), _axis_names(model)
    return tuple(ranges.stated(_spec("input", value, taken)) for value in _given(model))


def typed(model: onnx.ModelProto) -> Contract:
    """The names and types of the inputs, without their axes.

    Raises:
        ModelError: One has an unsupported type.
    """
    inputs = tuple(TensorSpec(value.name, _dtype("input", value), ()) for value in _given(model))
    return Contract(inputs=inputs, outputs=(), files=(), digest="", opset=0)


def _given(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    stored = {initializer.name for initializer in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _axis_names(model: onnx.ModelProto) -> set[str]:
    values = (*model.graph.input, *model.graph.output)
    return {axis.dim_param for value in values for axis in value.type.tensor_type.shape.dim}


def facts(path: Path) -> operators.Facts:
    """The operators' facts about rows of one call; external weights are not read."""
    return operators.facts(onnx.load(str(path), load_external_data=False))


def table_lengths(path: Path, longest: int) -> list[int]:
    """The sizes of axes of the file's weights, up to a limit, sorted; weights are not read."""
    model = onnx.load(str(path), load_external_data=False)
    return sorted(
        {n for tensor in model.graph.initializer for n in tensor.dims if 1 < n <= longest}
    )


def refuse_random(path: Path) -> None:
    """Reject a file whose graph generates random numbers.

    Raises:
        ModelError: It holds such operators; all are named.
    """
    operators.refuse_random(read(path))


def maker(path: Path, output: str) -> str:
    """The operator that gives an output, behind those that keep its values; "" for an input."""
    nodes = {name: node for node in parsed(path).graph.node for name in node.output}
    name = output
    while (node := nodes.get(name)) is not None and node.op_type in _KEEPING:
        name = node.input[0]
    return node.op_type if node is not None else ""


def quantizes(path: Path) -> bool:
    """Whether the graph rounds values to integers on the way; weights are not read."""
    return operators.quantizes(onnx.load(str(path), load_external_data=False))


def recurs(path: Path) -> bool:
    """Whether the graph has recurrent networks; weights are not read."""
    return operators.recurs(onnx.load(str(path), load_external_data=False))


def _spec(side: str, value: onnx.ValueInfoProto, taken: Collection[str]) -> TensorSpec:
    """A tensor; an axis without a size and a name gets a name of its own, `input_0`."""
    dtype, tensor = _dtype(side, value), value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ModelError(
            f"{side} {value.name} must be a tensor of known rank, got {_in_words(value.type)} "
            "without a shape. Show its axes with --example inputs.npz, or state them in the file, "
            "those of variable size by a name."
        )
    shape = tuple(
        _axis(axis, f"{value.name}_{i}", taken) for i, axis in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, dtype, shape)


def _dtype(side: str, value: onnx.ValueInfoProto) -> str:
    number = value.type.tensor_type.elem_type
    if number not in _DTYPES:
        raise ModelError(
            f"{side} {value.name} must be a tensor of a type that NumPy has, got "
            f"{_in_words(value.type)}. {_advice(value.type)}"
        )
    return _DTYPES[number]


def _narrowed(spec: TensorSpec, types: Mapping[str, str]) -> TensorSpec:
    """The tensor with the type that it had before it was widened, if it was."""
    return replace(spec, narrow=types.get(spec.name, ""))


def _in_words(kind: onnx.TypeProto) -> str:
    """A type as ONNX's own texts write it: `sequence(map(int64, float))`."""
    form = kind.WhichOneof("value")
    if form == "tensor_type":
        return f"tensor({_element(kind.tensor_type.elem_type)})"
    if form == "sparse_tensor_type":
        return f"sparse_tensor({_element(kind.sparse_tensor_type.elem_type)})"
    if form == "sequence_type":
        return f"sequence({_in_words(kind.sequence_type.elem_type)})"
    if form == "optional_type":
        return f"optional({_in_words(kind.optional_type.elem_type)})"
    if form == "map_type":
        key, held = kind.map_type.key_type, kind.map_type.value_type
        is_number = held.WhichOneof("value") == "tensor_type"
        value = _element(held.tensor_type.elem_type) if is_number else _in_words(held)
        return f"map({_element(key)}, {value})"
    return "no type"


def _element(number: int) -> str:
    known = {value: name.lower() for name, value in TensorProto.DataType.items()}
    return known.get(number, f"type {number}")


def _advice(kind: onnx.TypeProto) -> str:
    """What to do about a type that is refused."""
    form = kind.WhichOneof("value")
    if form == "tensor_type" and _element(kind.tensor_type.elem_type).startswith("complex"):
        return "Take or give its real and its imaginary part as two tensors."
    if form == "tensor_type":
        return "Cast it in the model, which then takes or gives float32 or int32."
    if form == "optional_type":
        return "Make it a tensor that is always there."
    if form == "sparse_tensor_type":
        return "Make it a dense tensor."
    return "Give each of its tensors a name of its own, or join them into one."


def _axis(axis: onnx.TensorShapeProto.Dimension, own: str, taken: Collection[str]) -> int | str:
    """The size, or the name: tf2onnx and Paddle state -1 or `?` for a size that varies."""
    if axis.HasField("dim_value") and axis.dim_value >= 0:
        return axis.dim_value
    if axis.dim_param.strip() not in _NAMELESS:
        return axis.dim_param
    while own in taken:
        own += "_"
    return own


def random_input(spec: TensorSpec, sizes: Mapping[str, int], seed: int) -> Array:
    """Random values of the spec's type; variable axes take their size from `sizes`."""
    shape = [sizes.get(axis, 1) if isinstance(axis, str) else axis for axis in spec.shape]
    generator = np.random.default_rng(seed)
    if spec.dtype == "str":
        return with_known(spec, np.full(shape, "text", dtype=object), generator)
    if spec.value_range is not None:
        values = random_index(spec, shape, generator)
    elif np.dtype(spec.dtype).kind in "biu":
        values = generator.integers(0, 2, shape).astype(spec.dtype)
    else:
        values = generator.standard_normal(shape).astype(spec.dtype)
    values = clipped(spec, with_column_indices(spec, values, generator))
    return with_known(spec, values, generator)


def random_index(spec: TensorSpec, shape: Sequence[int], generator: np.random.Generator) -> Array:
    """Indices over the whole table, including both ends; never the pad value."""
    low, high = spec.value_range or (0, 0)
    dtype = np.dtype(spec.dtype)
    limits = np.iinfo(np.int64 if dtype.kind == "f" else dtype)
    low, high = max(low, int(limits.min)), min(high, int(limits.max))
    if spec.pad_value == low < high:
        low += 1
    values = generator.integers(low, high, shape, dtype=limits.dtype, endpoint=True).astype(dtype)
    if values.size > 1:
        values.flat[generator.choice(values.size, 2, replace=False)] = (low, high)
    if spec.pad_value is not None and low < high:
        values[values == spec.pad_value] = low
    return values


def with_column_indices(spec: TensorSpec, values: Array, generator: np.random.Generator) -> Array:
    """The values, with indices over the whole table in columns that index one."""
    values = np.asarray(values)  # NumPy draws a scalar where there are no axes
    for column in spec.column_ranges:
        table = replace(spec, value_range=(column.low, column.high), column_ranges=())
        part = np.moveaxis(values, column.axis, 0)[column.place, ...]
        part[...] = random_index(table, part.shape, generator)
    return values
