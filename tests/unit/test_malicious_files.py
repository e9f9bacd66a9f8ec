"""A file from a stranger, at each door that takes one: it is refused, and runs nothing."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_recipe
import zoo
from marship import contract
from marship.errors import CheckpointError, DataError, MarshipError, ModelError, PackageError
from marship.errors import UsageError as Usage
from marship.exporting.step import ExportSettings, export_model
from marship.fit import loop as fit
from marship.fit import run
from marship.packaging import configure
from marship.trust import archive
from signed import write

TRACE = "trace"
Door = Callable[[Path, bytes], object]


class Trap:
    """A pickle that makes a folder when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (TRACE,)


@pytest.fixture(autouse=True)
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap springs into this test's own folder; that it can is tried first."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Trap()))  # noqa: S301  the proof that the trap works
    Path(TRACE).rmdir()


def torched(value: object, *, legacy: bool = False) -> bytes:
    """What torch.save writes, in its zip format or the one before."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def npz(**arrays: object) -> bytes:
    """An npz, objects pickled into it."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **{k: np.asarray(v) for k, v in arrays.items()})
    return buffer.getvalue()


def npy(descr: str = "<f4", shape: str = "(2, 5)", data: bytes = bytes(40)) -> bytes:
    """An npz of one array whose header says this."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return zipped("input.npy", b"\x93NUMPY\x03\0" + struct.pack("<L", len(header)) + header + data)


def zipped(name: str, data: bytes, *, at: int = 0, byte: int = 0) -> bytes:
    """A zip of one file; a byte of its entry in the directory may be another."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    found = bytearray(buffer.getvalue())
    if at:
        found[found.rindex(b"PK\x01\x02") + at] = byte
    return bytes(found)


def safetensors(header: object, data: bytes = bytes(4), length: int | None = None) -> bytes:
    """A safetensors file: eight bytes of length, a JSON header, the numbers."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], end: int, dtype: str = "F32") -> dict[str, object]:
    """A header with one tensor."""
    return {"weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def export_weights(suffix: str) -> Door:
    """`marship export MODULE:FUNCTION --weights FILE`."""

    def door(folder: Path, content: bytes) -> object:
        weights = folder / f"weights{suffix}"
        weights.write_bytes(content)
        np.savez(folder / "example.npz", input=np.zeros((2, 10), np.float32))
        return export_model(
            f"{zoo.__file__}:mlp",
            example=folder / "example.npz",
            settings=ExportSettings(),
            weights=weights,
            out=folder / "run",
        )

    return door


def export_example(folder: Path, content: bytes) -> object:
    """`marship export MODULE:FUNCTION --example FILE`."""
    (folder / "example.npz").write_bytes(content)
    return export_model(
        f"{zoo.__file__}:mlp",
        example=folder / "example.npz",
        settings=ExportSettings(),
        out=folder / "run",
    )


def resume(folder: Path, content: bytes) -> object:
    """A training recipe with `--resume`."""
    (folder / run.CHECKPOINT_FILE).write_bytes(content)
    settings = tiny_recipe.Settings(run_dir=folder, resume=True)
    return fit.fit(tiny_recipe.make_task(settings), settings, fit.start(settings))


def inspect(folder: Path, content: bytes) -> object:
    """`marship inspect`, which others that take archives begin with."""
    return archive.read(write(folder / "lin.mar", {"model-config.yaml": content}))


def golden(folder: Path, content: bytes) -> object:
    """The golden cases that a worker replays when it loads."""
    (folder / "golden.npz").write_bytes(content)
    return contract.read_golden(folder / "golden.npz")


def option(folder: Path, content: bytes) -> object:
    """`marship configure ARCHIVE NAME=VALUE`."""
    return configure.configure(write(folder / "lin.mar"), [f"x={content.decode()}"])


YAML = b"!!python/object/apply:os.mkdir [trace]"
PICKLED = pickle.dumps(Trap(), protocol=2)  # as torch.save does
CASES: dict[str, tuple[Door, bytes, type[MarshipError]]] = {
    "weights, pickled": (export_weights(".pt"), PICKLED, CheckpointError),
    "weights, torch": (export_weights(".pt"), torched({"0.weight": Trap()}), CheckpointError),
    "weights, old torch": (export_weights(".pt"), torched(Trap(), legacy=True), CheckpointError),
    "weights, no .pt": (export_weights(".bin"), torched([Trap()]), CheckpointError),
    "weights, by another name": (export_weights(".safetensors"), PICKLED, CheckpointError),
    "resume": (resume, torched({"format": 1, "weights": Trap()}), CheckpointError),
    "example": (export_example, npz(input=[Trap(), Trap()]), DataError),
    "example, a bare pickle": (export_example, PICKLED, DataError),
    "example, terabytes": (export_example, npy(shape="(1000000000000, 5)"), DataError),
    "example, more than memory has": (export_example, npy(shape=f"({10**20}, 5)"), DataError),
    "example, a long header": (export_example, npy(shape=f"(2, 5{' ' * 20_000})"), DataError),
    "example, a record": (export_example, npy("|V8", "(2,)", bytes(16)), DataError),
    "example, dates": (export_example, npy("<M8[s]", "(2,)", bytes(16)), DataError),
    "example, no array": (export_example, zipped("input", b"text"), DataError),
    "example, encrypted": (export_example, zipped("input.npy", b"x", at=8, byte=1), DataError),
    "example, packed oddly": (export_example, zipped("input.npy", b"x", at=10, byte=99), DataError),
    "golden cases": (golden, npz(**{"0/in/x": [Trap()]}), ModelError),
    "a tag in YAML": (inspect, YAML, PackageError),
    "a tag below a name": (inspect, b"minWorkers: " + YAML, PackageError),
    "a tag in an option": (option, YAML, Usage),
    "lies: past the end": (
        export_weights(".safetensors"), safetensors(tensor([1 << 40], 1 << 42)), CheckpointError
    ),
    "lies: shape and bytes": (
        export_weights(".safetensors"), safetensors(tensor([10, 10], 4)), CheckpointError
    ),
    "lies: a type": (
        export_weights(".safetensors"), safetensors(tensor([1], 4, "PICKLE")), CheckpointError
    ),
    "lies: header's length": (
        export_weights(".safetensors"), safetensors({}, length=(1 << 63)), CheckpointError
    ),
    "lies: no names": (export_weights(".safetensors"), safetensors([1, 2]), CheckpointError),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_and_runs_nothing(tmp_path: Path, case: str) -> None:
    """One clear error of our own, of one line, and the trap has not sprung."""
    door, content, error = CASES[case]
    with pytest.raises(error) as caught:
        door(tmp_path, content)
    assert not Path(TRACE).exists()
    assert " must " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_torch_zip_with_the_trap_would_spring(tmp_path: Path) -> None:
    """The same bytes do run code where somebody reads them without care."""
    (tmp_path / "weights.pt").write_bytes(torched({"0.weight": Trap()}))
    with zipfile.ZipFile(tmp_path / "weights.pt") as zipped:
        (name,) = (n for n in zipped.namelist() if n.endswith("data.pkl"))
        pickle.loads(zipped.read(name))  # noqa: S301  what this test is about
    assert Path(TRACE).is_dir()
