"""Reads example inputs of an ONNX file: an npz by input name, or requests as the server takes them.

A `.json` holds one request or a list of them, a `.npy` the only input; a folder holds any number of
such files. What is not an input of the model is refused in one line that names the file.
"""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from marship import texts
from marship.contract import Arrays, Contract
from marship.errors import DataError, ModelError, RequestError, UsageError
from marship.proof.cases import TARGET, first_axis, read_rows
from marship.proof.comparison import RunModel
from marship.proof.parity import reason
from marship.serving.formats import codec
from marship.serving.formats.ranges import outside
from marship.serving.formats.tensors import conform

MOST_BYTES = 1 << 30
"""Of all files together, and of each npz unpacked."""
FEW_ROWS = 8
"""Rows of a request that are tried first: it may be a file of a thousand photographs."""
SUFFIXES = (".json", ".npy", ".npz")


def read(path: Path, contract: Contract, run: RunModel) -> list[Arrays]:
    """Read example inputs, and run the model on each request.

    Args:
        path: A file or a folder.
        contract: The names, types and shapes of the inputs.
        run: The model.

    Raises:
        UsageError: The file does not exist, or is of another type.
        DataError: It is too large or damaged, does not hold inputs of the model, or the model does
            not run on them.
    """
    requests = given(path, contract)
    for number, request in enumerate(requests, 1):
        place = f"{path}, request {number}" if len(requests) > 1 else str(path)
        _check_shapes(request, contract, place)
        _check_runs(request, contract, run, place)
    return requests


def given(path: Path, contract: Contract) -> list[Arrays]:
    """Read example inputs of the contract's names and types, of whatever shape.

    Raises:
        UsageError: The file does not exist, or is of another type.
        DataError: It is too large or damaged, or does not hold inputs of the model.
    """
    files = _files(path)
    size_bytes = sum(map(_unpacked_bytes, files))
    if size_bytes > MOST_BYTES:
        raise DataError(
            f"{path} must hold at most {MOST_BYTES:,} bytes, got {size_bytes:,}. A few rows do."
        )
    return [request for file in files for request in _requests(file, contract)]


def check_finite(requests: Sequence[Arrays], contract: Contract, path: Path) -> None:
    """Refuse values that the server would: infinity, and NaN where the model does not take it.

    Raises:
        DataError: There is such a value.
    """
    for spec in contract.inputs:
        arrays = [one[spec.name] for one in requests if one[spec.name].dtype.kind == "f"]
        if any(np.isinf(array).any() for array in arrays):
            raise DataError(
                f"{spec.name} of {path} must hold finite values, got infinity, which requests must "
                "not hold either. Leave it out, or take it with --missing-values any."
            )
        full = [*spec.full_columns] if spec.takes_missing else slice(None)
        if any(np.isnan(array[..., full] if array.ndim else array).any() for array in arrays):
            where = f" elsewhere than in {spec.missing_in}" if spec.takes_missing else ""
            raise DataError(
                f"{spec.name} of {path} must hold finite values, got NaN{where}, which requests "
                "must not hold either. Leave it out, or take it with --missing-values allow."
            )


def joined(requests: Sequence[Arrays], contract: Contract) -> Arrays:
    """One array for each input: the rows of requests of the most frequent sizes.

    Without a first axis that all inputs share, the first request.
    """
    if first_axis(contract) is None:
        return requests[0]
    largest = alike(requests, are_rows=True)
    return {name: np.concatenate([one[name] for one in largest]) for name in largest[0]}


def alike(requests: Sequence[Arrays], *, are_rows: bool) -> list[Arrays]:
    """The requests of the most frequent sizes; the number of rows does not count among them."""
    groups: dict[tuple[tuple[int, ...], ...], list[Arrays]] = {}
    for request in requests:
        sizes = tuple(array.shape[int(are_rows) :] for array in request.values())
        groups.setdefault(sizes, []).append(request)
    return max(groups.values(), key=len)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.name[0] != ".")
        if not files:
            raise UsageError(f"{path} must hold {', '.join(SUFFIXES)} files, got none.")
        return files
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path} must be a folder, or a file whose name ends in {', '.join(SUFFIXES)}, got "
            f"{path.suffix or 'no ending'}."
        )
    return [path]


def _unpacked_bytes(file: Path) -> int:
    try:
        with texts.open_file(file) as opened:
            if file.suffix == ".npz" and zipfile.is_zipfile(opened):
                with zipfile.ZipFile(opened) as zipped:
                    return sum(info.file_size for info in zipped.infolist())
            return file.stat().st_size
    except FileNotFoundError as error:
        raise UsageError(f"{file} must hold example inputs, got no such file.") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} must be a file that can be read, got: {error}.") from error


def _requests(file: Path, contract: Contract) -> Iterator[Arrays]:
    """The requests of one file, in the contract's types."""
    try:
        for given in _bodies(file, contract):
            yield conform(given, contract)
    except (RequestError, ModelError) as error:
        raise DataError(f"{file} must hold inputs of the model, got: {error}") from error


def _bodies(file: Path, contract: Contract) -> Iterator[Arrays]:
    if file.suffix == ".npz":
        rows = {k: v for k, v in read_rows(file).items() if not k.startswith(TARGET)}
        names = [spec.name for spec in contract.inputs]
        if set(rows) != set(names):
            raise DataError(
                f"{file} must hold arrays named {', '.join(names)}, got "
                f"{', '.join(rows) or 'none'}. Name them as the model names its inputs."
            )
        yield from _calls({name: rows[name] for name in names}, contract)
        return
    with texts.open_file(file) as opened:
        body = opened.read()
    if file.suffix == ".npy":
        yield codec.decode(body, codec.NPY_TYPE, contract).inputs
        return
    value = codec.read_json(body, codec.JSON_TYPE)
    several = isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
    for one in value if several else [value]:
        yield codec.from_json(one, contract).inputs


def _calls(rows: Arrays, contract: Contract) -> Iterator[Arrays]:
    """The rows as they are, or in parts of the only size that the model takes."""
    sizes = {spec.name: spec.shape[0] for spec in contract.inputs if spec.shape}
    counts = {
        len(array) / size
        for name, array in rows.items()
        if array.ndim and isinstance(size := sizes.get(name), int) and size
    }
    count = next(iter(counts), 0.0)
    is_whole = count == int(count) > 1
    if not is_whole or len(counts) > 1 or any(isinstance(s, str) for s in sizes.values()):
        yield rows
        return
    for number in range(int(count)):
        yield {
            name: array[number * size : (number + 1) * size] if (size := sizes.get(name)) else array
            for name, array in rows.items()
        }


def _check_shapes(request: Arrays, contract: Contract, place: str) -> None:
    sizes: dict[str, int] = {}
    for spec in contract.inputs:
        array = request[spec.name]
        if array.ndim != len(spec.shape) or any(
            isinstance(axis, int) and axis != size
            for axis, size in zip(spec.shape, array.shape, strict=True)
        ):
            raise DataError(
                f"{spec.name} of {place} must be {spec.form}, got shape {list(array.shape)}."
            )
        if array.size == 0 and 0 not in spec.shape:
            raise DataError(f"{spec.name} of {place} must hold values, got none.")
        if problem := outside(array, spec):
            raise DataError(f"{place}: {problem}")
        for axis, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                raise DataError(
                    f"axis {axis} of {place} must have one size in all inputs, got "
                    f"{sizes[axis]} and {size}."
                )


def _check_runs(request: Arrays, contract: Contract, run: RunModel, place: str) -> None:
    tries = [request]
    if first_axis(contract) is not None:
        tries.insert(0, {name: array[:FEW_ROWS] for name, array in request.items()})
    refused = None
    for inputs in tries:
        try:
            run(inputs)
        except ModelError as error:
            refused = error
        else:
            return
    raise DataError(
        f"{place} must hold inputs that the model takes, got: {reason(refused)}."
    ) from refused
