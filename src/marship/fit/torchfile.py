"""Reads weights that PyTorch and safetensors wrote, without running code that a file may hold."""

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from marship.errors import CheckpointError

PROGRAM, TORCHSCRIPT = "a program of torch.export", "a TorchScript model"
INDEX_END = ".index.json"
NAMES = ("model", "diffusion_pytorch_model", "pytorch_model", "adapter_model")
ENDS = (".safetensors.index.json", ".safetensors", ".bin.index.json", ".bin")
"""How Hugging Face names the weights of a folder; those that cannot hold code come first."""

POINTER = b"version https://git-lfs"
"""How a file begins that a clone without Git LFS has in place of the real one."""
_OWN_TYPE = ("numpy", "functools", "pathlib", "builtins")
"""Modules whose objects are pickled with a state that no dict takes."""


def model_kind(path: Path) -> str | None:
    """PROGRAM or TORCHSCRIPT if the file holds a model with its code; None for any other file."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if names & {"archive_format", "serialized_exported_program.json"}:
        return PROGRAM
    return TORCHSCRIPT if "constants.pkl" in names else None


def weight_files(path: Path) -> list[Path]:
    """The files at a path of weights: one, or the index of a sharded model and its shards.

    Args:
        path: A file, an index of shards (`*.index.json`), or a folder that holds either, named as
            Hugging Face does.

    Raises:
        CheckpointError: There is none, or the index is damaged or names files elsewhere.
    """
    if path.is_dir():
        path = _of_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path} must be a file with weights, got no such file. Train first.")
    if not path.name.endswith(INDEX_END):
        return [path]
    try:
        shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        elsewhere = [name for name in shards if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} must be an index of shards with a weight_map, got {error!r}. "
            "Give the file that was saved beside the shards."
        ) from error
    missing = [name for name in shards if not (path.parent / name).is_file()]
    if elsewhere or missing or not shards:
        named = ", ".join((elsewhere or missing)[:3]) or "none"
        raise CheckpointError(
            f"{path} must name shards that lie beside it, got {named}. Copy all shards there."
        )
    return [path, *(path.parent / name for name in shards)]


def _of_folder(folder: Path) -> Path:
    for name in NAMES:
        for end in ENDS:
            if (folder / f"{name}{end}").is_file():
                return folder / f"{name}{end}"
    if (folder / "zero_to_fp32.py").is_file():
        found = "DeepSpeed's"
        advice = f"Merge it: python {folder}/zero_to_fp32.py {folder} weights"
    elif (folder / ".metadata").is_file():
        found = "torch.distributed's"
        module = "torch.distributed.checkpoint.format_utils"
        advice = f"Merge it: python -m {module} dcp_to_torch {folder} weights.pt"
    else:
        found, advice = "a folder without", "Give the file of the weights"
    raise CheckpointError(
        f"{folder} must hold model.safetensors, pytorch_model.bin or their index, "
        f"got {found}{' parts' if found.endswith('s') else ''}. {advice}."
    )


def read_weights(path: Path) -> Any:  # noqa: ANN401  whatever the file holds; callers look
    """The content of one file, or the tensors of all shards by name.

    Raises:
        CheckpointError: A file is missing, corrupted, or holds more than tensors and plain values.
    """
    files = weight_files(path)
    if len(files) == 1:
        return _read_file(files[0])
    tensors: dict[str, Any] = {}
    for shard in files[1:]:
        found = _read_file(shard)
        tensors |= found if isinstance(found, dict) else {}
    wanted = json.loads(files[0].read_text())["weight_map"]
    if lost := sorted(set(wanted) - set(tensors)):
        raise CheckpointError(
            f"{files[0]} must name tensors that its shards hold, got {len(lost)} that they do not: "
            f"{', '.join(lost[:3])}. Copy all shards anew."
        )
    return tensors


def _read_file(path: Path) -> Any:  # noqa: ANN401  as read_weights
    if kind := model_kind(path):
        raise CheckpointError(
            f"{path} must hold a state dict, got {kind}, with its code. Export it as it is: "
            f"marship export {path} --example example.npz --trust-code"
        )
    if _starts(path, POINTER):
        raise CheckpointError(
            f"{path} must be a file with weights, got a pointer of Git LFS, which stands for it. "
            "Fetch the file itself: git lfs pull"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _check_whole(path)
        return _load(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} must hold tensors and plain values only, got an object that runs code when "
            f"it is loaded{_named(path)}, or no file of PyTorch's. Save a state dict instead: "
            "torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # a corrupted file fails anywhere inside zip, pickle or safetensors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{path} must be a whole file, got a damaged one: {reason}. "
            "Train again, or restore it from a copy."
        ) from error


def _starts(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


class Foreign:
    """Stands for an object whose class is not loaded; keeps the class's name only."""

    name = ""

    def __init__(self, *_args: object, **_named: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


class _ForeignDict(Foreign):
    """Stands for a class whose objects are filled as dicts are."""

    def __new__(cls, *_args: object, **_named: object) -> Any:  # noqa: ANN401
        found: OrderedDict[Any, Any] = OrderedDict()  # the only kind that torch fills
        return found


def _load(path: Path) -> Any:  # noqa: ANN401  as read_weights
    """The content; objects of classes beside tensors, as Lightning stores, are left empty.

    Raises:
        pickle.UnpicklingError: An object is not only a class with its state.
    """
    import torch

    foreign = _foreign(path)
    if not foreign:
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        return _load_without(path, foreign, Foreign)
    except pickle.UnpicklingError:
        return _load_without(path, foreign, _ForeignDict)


def _load_without(path: Path, foreign: list[str], kind: type) -> Any:  # noqa: ANN401
    import torch

    stand_ins: list[Any] = []
    for name in foreign:
        base = Foreign if name.partition(".")[0] in _OWN_TYPE else kind
        stand_ins.append((type("Stand", (base,), {"name": name}), name))
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


def _foreign(path: Path) -> list[str]:
    """The classes and functions that a file names and torch would not load; sorted."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError):
        return []  # torch's older format, or no file of torch's


def _named(path: Path) -> str:
    foreign = _foreign(path)
    return f" ({', '.join(foreign[:3])})" if foreign else ""


def _check_whole(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return  # torch's older format has no checksums
    with zipfile.ZipFile(path) as archive:  # torch ignores wrong checksums
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} has a wrong checksum")
