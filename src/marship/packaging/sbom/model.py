"""The SBOM of an archive: its files, its model, and the packages that a worker needs."""

from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from marship.contract import Contract, TensorSpec
from marship.errors import PackageError
from marship.packaging.sbom.cyclonedx import Component, document, properties, python_package, sha256
from marship.trust import archive, outline
from marship.trust.archive import Archive, Member

_ARCHIVE, _MODEL = "archive", "model"
_OWN = "marship/"


def describe(path: Path) -> dict[str, Any]:
    """The SBOM of an archive; nothing in it is run.

    Raises:
        UsageError: The file does not exist.
        PackageError: It is not an archive, is corrupted, or has Python that does not parse.
    """
    read = archive.read(path)
    root = {
        "type": "application",
        "bom-ref": _ARCHIVE,
        "name": read.name,
        "version": read.version,
        "hashes": sha256(read.plain.sha256),
        "properties": properties({"file": path.name, "opened-by-key": read.key_name}),
    }
    own = [member for member in read.members if member.name.startswith(_OWN)]
    parts = [
        _model(read),
        *_graphs(read),
        *([_copy(read, own)] if own else []),
        *(_file(member) for member in read.members if member not in own),
    ]
    packages = list(_packages(read))
    return document(
        root,
        [*parts, *packages],
        depends={_ARCHIVE: [component["bom-ref"] for component in [*parts, *packages]]},
        incomplete=[component["bom-ref"] for component in packages],
    )


def _file(member: Member) -> Component:
    return {
        "type": "file",
        "bom-ref": f"file:{member.name}",
        "name": member.name,
        "hashes": sha256(member.sha256),
    }


def _copy(read: Archive, members: list[Member]) -> Component:
    """The copy of marship in the archive."""
    version = _versions(read).get("marship")
    return {
        **python_package("marship", version),
        "description": "the part of marship that runs in a worker, as files of this archive",
        "components": [_file(member) for member in members],
    }


def _model(read: Archive) -> Component:
    component: Component = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": read.name,
        "version": read.version,
    }
    contract = read.contract
    if contract is None:
        return component
    if len(contract.files) == 1:  # otherwise the digest is of the concatenation of several files
        component["hashes"] = sha256(contract.digest)
    component["modelCard"] = {
        "modelParameters": {
            **_tensors(contract),
            **_datasets(read),
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(read))},
        "properties": properties(
            {
                "opset": contract.opset,
                "tolerance.absolute": contract.tolerance.atol,
                "tolerance.relative": contract.tolerance.rtol,
                "data-digest": _section(read, "training").get("data_digest"),
            }
        ),
    }
    return component


def _graphs(read: Archive) -> Iterator[Component]:
    """The further graphs, each a model of its own."""
    for name, contract in read.graphs.items():
        yield {
            "type": "machine-learning-model",
            "bom-ref": f"graph:{name}",
            "name": f"{read.name}/{name}",
            "version": read.version,
            "modelCard": {"modelParameters": _tensors(contract)},
        }


def _tensors(contract: Contract) -> dict[str, Any]:
    return {
        "inputs": [{"format": _format(spec)} for spec in contract.inputs],
        "outputs": [{"format": _format(spec)} for spec in contract.outputs],
    }


def _format(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} ({', '.join(map(str, spec.shape))})"


def _datasets(read: Archive) -> dict[str, Any]:
    evidence = _section(read, "recipe").get("evidence")
    data = evidence.get("data") if isinstance(evidence, dict) else None
    return {"datasets": [{"type": "dataset", "name": str(data)}]} if data else {}


def _metrics(read: Archive) -> Iterator[dict[str, str]]:
    """The metrics of each variant on held-out data; the evidence has all that were built."""
    for variant in _section(read, "optimize").get("variants", []):
        for name, value in (variant.get("metrics") or {}).items():
            where = f"held-out data, variant {variant['name']}"
            yield {"type": name, "value": str(value), "slice": where}


def _section(read: Archive, name: str) -> dict[str, Any]:
    found = read.evidence.get(name)
    return found if isinstance(found, dict) else {}


def _versions(read: Archive) -> dict[str, str]:
    found = _section(read, "versions")
    return {name: str(text) for name, text in found.items() if text != "not installed"}


def _packages(read: Archive) -> Iterator[Component]:
    """The packages that a worker needs, with the versions at packaging.

    Packages that are only imported inside functions are optional. A module is mapped to a package
    if that is installed here; otherwise the module's name is used, without a package URL.
    """
    versions, homes = _versions(read), packages_distributions()
    needed = {**_foreign(read), "ts": True}  # archives are run by TorchServe
    for module, always in sorted(needed.items()):
        scope = {"scope": "required" if always else "optional"}
        if names := homes.get(module):
            yield python_package(names[0], versions.get(names[0])) | scope
        else:
            yield {"type": "library", "bom-ref": f"module:{module}", "name": module} | scope


def _foreign(read: Archive) -> Mapping[str, bool]:
    handler = read.handler.partition(":")[0]
    if handler not in read.plain.files or not handler.endswith(".py"):
        return {}  # one of TorchServe's built-in handlers, which have no file
    try:
        return outline.outline(read.python(), handler).modules
    except outline.SourceError as error:
        raise PackageError(
            f"{read.path} must hold Python that can be parsed, got: {error}. "
            "Package the model again."
        ) from error
