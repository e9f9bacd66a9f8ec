"""A `.mar` file as it lies in the model store: read, never run.

The format is torch-model-archiver's: a zip with `MAR-INF/MANIFEST.json`, the handler, and
what the handler reads. marship's own additions are named here.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from marship import texts
from marship.contract import CONTRACT_FILE, Contract
from marship.errors import ModelError, PackageError, UsageError
from marship.serving import sealed

MANIFEST_FILE = "MAR-INF/MANIFEST.json"
CONFIG_FILE = "model-config.yaml"
EVIDENCE_FILE = "evidence.json"


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Archive:
    """What an archive says about itself.

    Attributes:
        path: The `.mar` file.
        manifest: torch-model-archiver's, with model name, version and handler.
        config: The parsed model-config.yaml.
        contract: What the model takes and gives; None in archives of other makers.
        evidence: How the model came about; empty in archives of other makers.
        members: All files, by name.
        key_name: The name of the key that opens the sealed files; None where none is sealed.
    """

    path: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    contract: Contract | None
    evidence: dict[str, Any]
    members: tuple[Member, ...]
    key_name: str | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.manifest["model"]["modelName"])

    @property
    def version(self) -> str:
        """The model's version."""
        return str(self.manifest["model"]["modelVersion"])

    @property
    def sealed(self) -> tuple[str, ...]:
        """The names of the sealed files."""
        return tuple(m.name for m in self.members if m.name.endswith(sealed.SUFFIX))

    def contents(self, name: str) -> bytes:
        """One file, as it was when the archive was read.

        Raises:
            PackageError: It is another now, or damaged.
        """
        known = {member.name: member for member in self.members}[name]
        with _explained(self.path), zipfile.ZipFile(self.path) as zipped, zipped.open(name) as file:
            found = file.read(known.size_bytes)
        if hashlib.sha256(found).hexdigest() != known.sha256:
            raise PackageError(
                f"{self.path} must stay as it is while it is used, got another {name}. Try again."
            )
        return found


def read(path: Path) -> Archive:
    """Read an archive; every byte is checked against its zip checksum.

    Raises:
        UsageError: There is no such file.
        PackageError: It is no archive, or damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path} must be a .mar file, got no such file.")
    with _explained(path), zipfile.ZipFile(path) as zipped:
        manifest = _manifest(texts.read(zipped, MANIFEST_FILE))
        config = _text(zipped, config_name(manifest))
        contract = _text(zipped, CONTRACT_FILE)
        evidence = _text(zipped, EVIDENCE_FILE)
        members = (_member(zipped, info) for info in zipped.infolist())
        return Archive(
            path=path,
            manifest=manifest,
            config=_mapping(config or b"{}", yaml.safe_load),
            contract=_contract(contract) if contract else None,
            evidence=_mapping(evidence or b"{}"),
            members=tuple(sorted(members, key=lambda member: member.name)),
            key_name=_key_name(zipped, sorted(zipped.namelist())),
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Tell what is wrong with an archive.

    Raises:
        PackageError: It is damaged, or none.
    """
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise PackageError(
            f"{path} must be an intact .mar archive, got: {error}. Package the model again."
        ) from error
    except (KeyError, ValueError, TypeError, yaml.YAMLError, ModelError) as error:
        reason = " ".join(str(error).split())  # YAML's has several lines
        raise PackageError(
            f"{path} must be an archive of torch-model-archiver, got: {reason}. "
            "Package the model again."
        ) from error


def config_name(manifest: dict[str, Any]) -> str:
    """The name of the settings' file in an archive with this manifest."""
    return str(manifest["model"].get("configFile", CONFIG_FILE))


def _text(zipped: zipfile.ZipFile, name: str) -> bytes:
    return texts.read(zipped, name) if name in zipped.namelist() else b""


def _mapping(text: bytes, parse: Callable[[bytes], Any] = json.loads) -> dict[str, Any]:
    value = texts.parsed(text, parse)
    if not isinstance(value, dict | None):
        raise TypeError(f"{type(value).__name__} where names and values must be")
    return value or {}


def _manifest(text: bytes) -> dict[str, Any]:
    manifest = _mapping(text)
    _ = manifest["model"]["modelName"], manifest["model"]["modelVersion"]
    return manifest


def _contract(text: bytes) -> Contract:
    texts.parsed(text)
    return Contract.from_json(text)


def _key_name(zipped: zipfile.ZipFile, names: Iterable[str]) -> str | None:
    """As the first sealed file says; only the key itself can prove it."""
    for name in names:
        if name.endswith(sealed.SUFFIX):
            with zipped.open(name) as file:
                header = sealed.Header.parse(file.read(sealed.HEADER_BYTES), name)
            return header.key_name.hex()
    return None


def _member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    digest = hashlib.sha256()
    with zipped.open(info) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return Member(info.filename, info.file_size, digest.hexdigest())
