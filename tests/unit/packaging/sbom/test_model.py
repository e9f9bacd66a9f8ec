"""An archive's bill of materials: every file, the model, and what a worker needs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from marship.errors import PackageError
from marship.packaging.sbom import model
from marship.packaging.step import PackageSettings, package
from marship.trust import archive
from marship.trust.outline import outline
from signed import write

pytestmark = pytest.mark.slow

HANDLER = b"""
import json
import numpy as np
from marship.serving import handler
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
class Handler(handler.OnnxHandler):
    def picture(self):
        import PIL.Image
        import words
"""


@pytest.fixture(scope="module")
def mar(linear_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of a bare ONNX file."""
    settings = PackageSettings(model_store=tmp_path_factory.mktemp("store"), version="2.1")
    return package(linear_onnx, settings)


@pytest.fixture(scope="module")
def bill(mar: Path) -> dict[str, Any]:
    """Its bill of materials."""
    return model.describe(mar)


def by_name(bill: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The components by name, those inside the copy of marship included."""
    found = {c["name"]: c for c in bill["components"]}
    return found | {c["name"]: c for c in found["marship"]["components"]}


def valid(bill: dict[str, Any]) -> bool:
    """Whether the strict schema of CycloneDX 1.6 accepts it."""
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None


def test_it_is_valid_and_about_the_archive(bill: dict[str, Any], mar: Path) -> None:
    """The schema accepts it, and its root is the archive's name, version and bytes."""
    assert valid(bill)
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("linear", "2.1")
    assert root["hashes"][0]["content"] == hashlib.sha256(mar.read_bytes()).hexdigest()


def test_every_file_is_listed_with_its_digest(bill: dict[str, Any], mar: Path) -> None:
    """Each file of the archive is a component with the SHA-256 of its bytes."""
    found = by_name(bill)
    for member in archive.read(mar).members:
        assert found[member.name]["hashes"] == [{"alg": "SHA-256", "content": member.sha256}]


def test_the_model_has_a_card(bill: dict[str, Any], linear_onnx: Path) -> None:
    """The model's own component tells its file's digest and what it takes and gives."""
    card = by_name(bill)["linear"]
    assert card["type"] == "machine-learning-model"
    digest = hashlib.sha256(linear_onnx.read_bytes()).hexdigest()
    assert card["hashes"][0]["content"] == digest
    inputs = card["modelCard"]["modelParameters"]["inputs"]
    assert inputs == [{"format": "input: float32 (batch, 3)"}]


def test_metrics_come_from_the_evidence(mar: Path, tmp_path: Path) -> None:
    """What each variant reached on held-out data stands in the card."""
    contract = archive.read(mar).contract
    assert contract is not None
    evidence = {"optimize": {"variants": [{"name": "int8", "metrics": {"top1": 0.7}}]}}
    files = {
        "handler.py": b"class Handler: pass\n",
        "contract.json": contract.to_json().encode(),
        "evidence.json": json.dumps(evidence).encode(),
    }
    bill = model.describe(write(tmp_path / "lin.mar", files))
    assert valid(bill)
    card = by_name_plain(bill)["lin"]["modelCard"]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [
        {"type": "top1", "value": "0.7", "slice": "held-out data, variant int8"}
    ]


def by_name_plain(bill: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The components by name."""
    return {c["name"]: c for c in bill["components"]}


def test_what_a_worker_needs_is_listed(bill: dict[str, Any], mar: Path) -> None:
    """The packages that the handler's imports reach, in the versions of the evidence."""
    found, versions = by_name(bill), archive.read(mar).evidence["versions"]
    for name in ("numpy", "onnxruntime", "torchserve"):
        assert found[name]["version"] == versions[name]
        assert found[name]["scope"] == "required"
    assert "soundfile" not in found


def test_an_archive_of_another_maker_has_a_bill(tmp_path: Path) -> None:
    """Without contract and evidence, files and the model's name are still told."""
    bill = model.describe(write(tmp_path / "lin.mar"))
    assert valid(bill)
    assert {"handler.py", "lin", "torchserve"} <= set(by_name_plain(bill))


def test_a_sealed_archive_needs_no_key(
    linear_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is encrypted is listed as it lies there, and the key that opens it is named."""
    monkeypatch.setenv("SEAL", "ab" * 32)
    mar = package(linear_onnx, PackageSettings(model_store=tmp_path, seal="env:SEAL"))
    monkeypatch.delenv("SEAL")
    bill = model.describe(mar)
    assert valid(bill)
    assert "model.onnx.sealed" in by_name_plain(bill)
    told = {item["name"]: item["value"] for item in bill["metadata"]["component"]["properties"]}
    assert told["marship:opened-by-key"] == archive.read(mar).key_name


def test_imports_are_followed() -> None:
    """Others' modules are found through the archive's own files; stdlib and types do not count."""
    sources = {
        "handler.py": HANDLER,
        "words.py": b"import regex",
        "marship/__init__.py": b"",
        "marship/serving/__init__.py": b"",
        "marship/serving/handler.py": b"import onnxruntime\nfrom marship.errors import Fault",
        "marship/errors.py": b"import os.path",
        "marship/serving/sounds/__init__.py": b"import soundfile",
    }
    assert outline(sources, "handler.py").modules == {
        "numpy": True,
        "onnxruntime": True,
        "PIL": False,
        "regex": False,
    }


def test_code_that_is_none_is_refused(tmp_path: Path) -> None:
    """A handler that is no Python is an archive's fault, told as one."""
    mar = write(tmp_path / "lin.mar", {"handler.py": b"class :"})
    with pytest.raises(PackageError, match="Python"):
        model.describe(mar)
