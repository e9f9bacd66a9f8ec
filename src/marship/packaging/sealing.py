"""Encrypts (seals) a model's files when packaging, and rewraps their keys in a built archive.

The format is that of `serving/model/sealed.py`.
"""

import io
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from marship.contract import Contract, digest_streams
from marship.errors import PackageError
from marship.serving.model import keysource, sealed
from marship.serving.model.sealed import HEADER_BYTES, Sealer, SealHeader
from marship.storage import replacing
from marship.trust import archive, extract

WEIGHTS_FILE = "model.weights"
SMALLEST_BYTES = 1024
"""Smaller weights stay in the graph, as with ONNX's own tools."""
_ALIGNMENT = 64
_REVEALING = {"details", "reason"}


@dataclass(frozen=True, slots=True)
class PlainModel:
    """A model to be sealed.

    Attributes:
        path: Its ONNX file.
        outside: The files of its external data, by name in the archive.
        names: Their names by the location that the model states; empty where these are equal.
    """

    path: Path
    outside: Mapping[str, Path] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def split(plain: PlainModel) -> tuple[bytes, bytes]:
    """Split a model into its graph and its weights, the content of an external `WEIGHTS_FILE`.

    A graph with internal weights would be in a worker's memory three times while loading, and
    twice afterwards. External weights stay external. Those of a branch or a loop's body become
    internal: ONNX Runtime cannot read them from memory that we provide.

    Returns:
        The bytes of the ONNX file, and of the weights, possibly empty.
    """
    import onnx
    from onnx import TensorProto
    from onnx import external_data_helper as external

    from marship.proof import graph

    model = onnx.load(str(plain.path), load_external_data=False)
    outermost = {tensor.name for tensor in model.graph.initializer}
    for tensor in external._get_all_tensors(model):
        if tensor.external_data and tensor.name not in outermost:
            external.load_external_data_for_tensor(tensor, str(plain.path.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    if plain.names:
        graph.relocated(model, plain.names)
    weights = io.BytesIO()
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < SMALLEST_BYTES:
            continue
        offset = weights.tell() + -weights.tell() % _ALIGNMENT
        weights.seek(offset)
        weights.write(tensor.raw_data)
        external.set_external_data(tensor, WEIGHTS_FILE, offset, len(tensor.raw_data))
        tensor.ClearField("raw_data")
    return model.SerializeToString(deterministic=True), weights.getvalue()


def write_model(
    sealer: Sealer, model: PlainModel, contract: Contract, folder: Path, place: str = ""
) -> Contract:
    """Write a model sealed, with its weights external to the graph.

    Args:
        sealer: Encrypts its files.
        model: The model.
        contract: Its contract.
        folder: The archive's top.
        place: The model's folder there, with a slash at its end; empty for the top.

    Returns:
        The contract of the sealed files.
    """
    graph, weights = split(model)
    with ExitStack() as opened:
        plain: dict[str, BinaryIO] = {contract.files[0]: io.BytesIO(graph)}
        if weights:
            plain[WEIGHTS_FILE] = io.BytesIO(weights)
        for name, path in model.outside.items():
            plain[name] = opened.enter_context(path.open("rb"))
        for name, stream in plain.items():
            sealer.write(folder, f"{place}{name}", stream)
            stream.seek(0)
        return replace(contract, files=tuple(plain), digest=digest_streams(*plain.values()))


def discreet(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence without names of nodes, which tell how each variant was built."""
    evidence = dict(evidence)
    if isinstance(evidence.get("rows_alone_and_together"), Mapping):
        evidence["rows_alone_and_together"] = _unexplained(evidence["rows_alone_and_together"])
    if parity := evidence.get("parity"):
        evidence["parity"] = discreet(parity)
    if graphs := evidence.get("graphs"):
        evidence["graphs"] = {name: discreet(facts) for name, facts in graphs.items()}
    report = evidence.get("optimize")
    if report is None:
        return evidence
    variants = [
        {name: value for name, value in variant.items() if name not in _REVEALING}
        for variant in report["variants"]
    ]
    return {**evidence, "optimize": {**report, "variants": variants}}


def _unexplained(proof: Mapping[str, Any]) -> dict[str, Any]:
    """A proof without its reasons, which name operators and outputs."""
    return {name: value for name, value in proof.items() if name not in ("reason", "left_out")}


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """The result of rewrapping an archive's keys.

    Attributes:
        archive: The archive after the change.
        key_before: The name of the old operator key.
        key_after: The name of the new operator key.
    """

    archive: archive.Archive
    key_before: str
    key_after: str


def rewrap(path: str | Path, old: str, new: str, out: str | Path | None = None) -> Rewrapped:
    """Rewrap the data keys of sealed files for another operator key; the data is not rewritten.

    Args:
        path: The archive.
        old: The source of the old key.
        new: The source of the new key.
        out: The output file; None replaces the archive.

    Raises:
        UsageError: The archive does not exist, or a key source is malformed.
        PackageError: It is not an archive, or nothing in it is sealed.
        SealError: A key cannot be read, or the old one does not decrypt every sealed file.
    """
    path, out = Path(path), Path(out) if out else None
    read = archive.read(path)
    if not read.sealed:
        raise PackageError(
            f"{path} must be sealed to get another key, got a plain one. Package it with --seal."
        )
    keys = keysource.read(old), keysource.read(new)
    heads = {}
    for name in read.sealed:
        bound = sealed.binding(read.name, read.version, name)
        header = SealHeader.parse(extract.head(path, read.plain, name, HEADER_BYTES), name)
        data_key = sealed.unwrap(header, keys[0], bound, name)
        heads[name] = sealed.wrapped(header, data_key, keys[1], bound).pack()
    with replacing(out or path) as draft:
        extract.rewrite(path, read.plain, draft, heads=heads)
    before, after = (sealed.key_name(key).hex() for key in keys)
    return Rewrapped(archive.read(out or path), before, after)
