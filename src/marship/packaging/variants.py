"""Other variants of the model in an archive, from the run folder that it was packed from.

Only what differs between variants is exchanged: the ONNX file, the digest and tolerance in the
contract, and the file's name in the evidence. Handler, golden cases, assets and settings stay.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from marship import storage
from marship.contract import CONTRACT_FILE, Contract
from marship.errors import PackageError, UsageError
from marship.packaging.graph import MODEL_FILE
from marship.packaging.step import chosen_file, for_file
from marship.trust.archive import EVIDENCE_FILE, Archive

AS_PACKED = "as packed"
_REFUSED = ("rejected", "over budget")
"""Verdicts of `optimize` that cost accuracy; others are about speed, which is measured here."""


@dataclass(frozen=True, slots=True)
class Variants:
    """The variants of an archive's model.

    Attributes:
        own: The name of the one in the archive.
        others: Names of those that can take its place.
        left_out: Why further ones cannot, by name.
    """

    own: str = AS_PACKED
    others: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def find(archive: Archive, run_dir: Path) -> Variants:
    """The variants that `optimize` built in the archive's run folder.

    Raises:
        UsageError: The folder has no variants, or is not the archive's.
        PackageError: The archive was not packed by marship, or is sealed.
    """
    if archive.contract is None or archive.sealed:
        found = "a sealed one" if archive.sealed else "another"
        raise PackageError(
            f"{archive.path} must be an archive of marship with a plain model to take a variant, "
            f"got {found}. Leave --run out."
        )
    report_file = run_dir / "optimize.json"
    if not report_file.is_file():
        raise UsageError(
            f"{run_dir} must hold variants, got no optimize.json. Run: marship optimize {run_dir}"
        )
    report = storage.read_json(report_file)
    packed = (archive.evidence.get("optimize") or {}).get("model_digest", archive.contract.digest)
    if report["model_digest"] != packed:
        raise UsageError(
            f"{run_dir} must be the run folder that {archive.path} was packed from, got the "
            "variants of another model. Name that, or package this one."
        )
    built = {entry["name"]: entry for entry in report["variants"] if entry["built"]}
    source = archive.evidence.get("source")
    own = next((name for name, entry in built.items() if entry["file"] == source), AS_PACKED)
    left_out = {
        name: f"{entry['verdict']}: {entry['why']}"
        for name, entry in built.items()
        if entry["verdict"] in _REFUSED and name != own
    }
    others = tuple(name for name in built if name not in left_out and name != own)
    return Variants(own, others, left_out)


def files(archive: Archive, run_dir: Path, name: str) -> dict[str, bytes]:
    """The files of the archive that change with the variant, by name.

    Raises:
        PackageError: The variant keeps its weights in further files, or was changed.
        UsageError: There is no such variant.
    """
    if archive.contract is None:
        raise PackageError(f"{archive.path} must have a contract, got none.")
    run_contract = Contract.from_json((run_dir / CONTRACT_FILE).read_bytes())
    path, tolerance = chosen_file(run_dir, run_contract, name)
    contract = for_file(archive.contract, path, tolerance)
    if len(contract.files) > 1 or len(archive.contract.files) > 1:
        raise PackageError(
            f"variant {name} must be one file to take the place of another, got several. Package "
            f"it: marship package {run_dir} --variant {name}"
        )
    evidence = {**archive.evidence, "source": path.name}
    return {
        MODEL_FILE: path.read_bytes(),
        CONTRACT_FILE: contract.to_json().encode(),
        EVIDENCE_FILE: (json.dumps(evidence, indent=2, sort_keys=True) + "\n").encode(),
    }
