"""Reads a `.mar` file, without running anything in it.

The format is torch-model-archiver's: a zip with `MAR-INF/MANIFEST.json`, the handler, and files
of the handler. marship's additions are named here. All of it is untrusted: the zip is read by
`trust.contents`, its texts by `texts`, and both are bounded.
"""

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from marship import texts
from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    GOLDEN_REQUESTS_FILE,
    GRAPHS_FOLDER,
    LIBRARIES_FOLDER,
    Contract,
)
from marship.errors import ModelError, PackageError, UsageError
from marship.serving.model import sealed
from marship.trust import contents, extract, outline
from marship.trust.contents import ArchiveContents

MANIFEST_FILE = contents.MANIFEST_FILE
CONFIG_FILE = "model-config.yaml"
EVIDENCE_FILE = "evidence.json"

_OWN_NAMES = (
    *("model.onnx", CONTRACT_FILE, GOLDEN_FILE, EVIDENCE_FILE, CONFIG_FILE),
    *(GOLDEN_REQUESTS_FILE, GRAPHS_FOLDER, LIBRARIES_FOLDER, "MAR-INF", "marship"),
)

MOST_GRAPHS = 16
"""Further graphs of an archive."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Archive:
    """The metadata of an archive.

    Attributes:
        path: The `.mar` file.
        manifest: torch-model-archiver's manifest, with model name, version and handler.
        config: The parsed model-config.yaml.
        contract: The model's contract; None if not built by marship.
        graphs: The contracts of further graphs, by name.
        evidence: How the model was built; empty if not built by marship.
        members: All files, by name.
        key_name: The name of the key of the sealed files; None if none is sealed.
        plain: The contents as read, with which later reads are verified.
    """

    path: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    contract: Contract | None
    graphs: Mapping[str, Contract]
    evidence: dict[str, Any]
    members: tuple[Member, ...]
    key_name: str | None
    plain: ArchiveContents = field(repr=False)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.plain.model

    @property
    def version(self) -> str:
        """The model's version."""
        return self.plain.version

    @property
    def handler(self) -> str:
        """The handler's file, perhaps with `:` and a function; empty without one."""
        return str(self.manifest["model"].get("handler", ""))

    @property
    def sealed(self) -> tuple[str, ...]:
        """The names of the sealed files."""
        return tuple(m.name for m in self.members if m.name.endswith(sealed.SUFFIX))

    def contents(self, name: str) -> bytes:
        """One file, verified to be unchanged since the archive was read.

        Raises:
            PackageError: It has changed, or is corrupted.
        """
        return extract.file(self.path, self.plain, name)

    def python(self, *names: str) -> dict[str, bytes]:
        """Python files, verified to be unchanged; all of them if none is named.

        Raises:
            PackageError: They are too large to parse, have changed, or are corrupted.
        """
        chosen = names or tuple(m.name for m in self.members if m.name.endswith(".py"))
        return extract.files(self.path, self.plain, chosen, outline.MOST_BYTES)


def read(path: str | Path) -> Archive:
    """Read an archive completely, within the limits of `trust.contents`.

    Raises:
        UsageError: The file does not exist.
        PackageError: It is not a plain archive, is corrupted, or a text in it is malformed.
    """
    path = Path(path)
    plain, config = read_settings(path)
    contract = _text(path, plain, CONTRACT_FILE, _contract)
    evidence = _text(path, plain, EVIDENCE_FILE, _evidence)
    members = (Member(name, file.size_bytes, file.sha256) for name, file in plain.files.items())
    return Archive(
        path=path,
        manifest=dict(plain.manifest),
        config=config,
        contract=contract,
        graphs=_graphs(path, plain),
        evidence=evidence or {},
        members=tuple(sorted(members, key=lambda member: member.name)),
        key_name=_key_name(path, plain),
        plain=plain,
    )


def read_settings(path: Path) -> tuple[ArchiveContents, dict[str, Any]]:
    """An archive's contents and its model-config.yaml, which TorchServe parses itself.

    Raises:
        UsageError: The file does not exist.
        PackageError: It is not a plain archive, is corrupted, or has malformed settings.
    """
    plain = contents.read(path)
    return plain, settings(path, plain)


def settings(path: Path, plain: ArchiveContents) -> dict[str, Any]:
    """The model-config.yaml of an archive that was read, which TorchServe parses itself.

    Raises:
        PackageError: It is malformed, or the archive has changed.
    """
    return _text(path, plain, config_name(plain.manifest), _settings) or {}


def config_name(manifest: Mapping[str, Any]) -> str:
    """The name of the settings file in an archive with this manifest."""
    return str(manifest["model"].get("configFile", CONFIG_FILE))


def check_names(named: Iterable[tuple[str, str]], own: Iterable[str] = ()) -> None:
    """Check that no two files have the same name: a worker would find one overwritten.

    Args:
        named: The user's files for the archive: a description and the name of each.
        own: Further names used by marship.

    Raises:
        UsageError: Two names are equal, on some file systems, or one is not printable.
    """
    taken = {_key(f"{name}{end}") for name in (*_OWN_NAMES, *own) for end in ("", sealed.SUFFIX)}
    for kind, name in named:
        if _key(name) in taken:
            raise UsageError(
                f"{name} must be named otherwise: the archive has such a file, got {kind} of that "
                "name. Rename it."
            )
        if not name.isprintable() or "\\" in name:
            raise UsageError(f"{name!r} must be named in letters that can be printed.")
        taken |= {_key(name), _key(f"{name}{sealed.SUFFIX}")}


def free_names(
    locations: Iterable[str], named: Iterable[str], own: Iterable[str] = ()
) -> dict[str, str]:
    """A name in the archive for each file of a model's external data, by its location.

    It is the file's own unless something of the archive has that name, or a worker would import it
    or hide it.

    Args:
        locations: Where the model says that the files are, relative to it.
        named: Names of the user's other files for the archive.
        own: Further names used by marship.
    """
    own = (*_OWN_NAMES, *own, *named)
    taken = {_key(f"{name}{end}") for name in own for end in ("", sealed.SUFFIX)}
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    for location in locations:
        place = posixpath.normpath(location)
        name = places.get(place) or posixpath.basename(place)
        number = 0
        while place not in places and (_key(name) in taken or not _is_harmless(name)):
            number += 1
            name = f"external-{number}.data"
        places[place] = found[location] = name
        taken |= {_key(name), _key(f"{name}{sealed.SUFFIX}")}
    return found


def _is_harmless(name: str) -> bool:
    special = name.startswith(".") or name.endswith((".py", ".so", sealed.SUFFIX))
    return name.isprintable() and "\\" not in name and not special


def _key(name: str) -> str:
    """A name as on a file system that ignores case and Unicode normalization."""
    return unicodedata.normalize("NFC", name.casefold())


def _graphs(path: Path, plain: ArchiveContents) -> dict[str, Contract]:
    """The contracts of further graphs, by name."""
    place = re.compile(rf"{GRAPHS_FOLDER}/([^/]+)/{CONTRACT_FILE}")
    named = {name: found[1] for name in sorted(plain.files) if (found := place.fullmatch(name))}
    if len(named) > MOST_GRAPHS:
        raise PackageError(f"{path} must have at most {MOST_GRAPHS} graphs, got {len(named):,}.")
    texts_read = {name: _text(path, plain, file, _contract) for file, name in named.items()}
    return {name: contract for name, contract in texts_read.items() if contract is not None}


def _text(path: Path, plain: ArchiveContents, name: str, parse: Callable[[bytes], T]) -> T | None:
    """Parse a text file of the archive; None without it.

    Raises:
        PackageError: It is malformed; the message names it.
    """
    if name not in plain.files:
        return None
    data = extract.files(path, plain, [name], texts.MOST_BYTES)[name]
    try:
        return parse(data)
    except (texts.TextError, ModelError) as error:
        raise PackageError(
            f"{name} in {path} must be a text that torch-model-archiver or marship writes, "
            f"got: {str(error).rstrip('.')}. Package the model again."
        ) from error


def _settings(data: bytes) -> dict[str, Any]:
    settings = _object(texts.yaml_value(data) or {})
    section = settings.get("marship") or {}
    if not isinstance(section, dict):
        raise texts.TextError("a marship section that is no mapping")
    providers = section.get("providers") or []
    if not isinstance(providers, list) or not all(isinstance(one, str) for one in providers):
        raise texts.TextError("providers that are no list of names")
    return settings


def _contract(data: bytes) -> Contract:
    texts.json_value(data)
    return Contract.from_json(data)


def _evidence(data: bytes) -> dict[str, Any]:
    evidence = _object(texts.json_value(data))
    for name in ("recipe", "training", "optimize", "versions"):
        if not isinstance(evidence.get(name), dict | None):
            raise texts.TextError(f"{name} that is no object")
    if not all(isinstance(version, str) for version in (evidence.get("versions") or {}).values()):
        raise texts.TextError("a version that is no text")
    variants = (evidence.get("optimize") or {}).get("variants", [])
    if not isinstance(variants, list) or not all(map(_is_variant, variants)):
        raise texts.TextError("variants that are no list of objects with names and metrics")
    return evidence


def _is_variant(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("metrics"), dict | None)
    )


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise texts.TextError(f"{type(value).__name__} where names and values must be")
    return value


def _key_name(path: Path, plain: ArchiveContents) -> str | None:
    """The key name in the first sealed file; it is not authenticated."""
    for name in sorted(plain.files):
        if name.endswith(sealed.SUFFIX):
            try:
                data = extract.head(path, plain, name, sealed.HEADER_BYTES)
                return sealed.SealHeader.parse(data, name).key_name.hex()
            except ModelError as error:
                raise PackageError(f"{path} must be intact, got: {error}") from error
    return None
