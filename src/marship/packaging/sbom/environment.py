"""The SBOM of this environment: its packages, Java, and TorchServe's bundled components."""

import hashlib
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, cast

from packaging.requirements import Requirement

from marship.engines.torchserve import java
from marship.packaging.sbom import frontend
from marship.packaging.sbom.cyclonedx import (
    Component,
    document,
    licences,
    normalized,
    package_url,
    properties,
    python_package,
    sha256,
)

_JAVA, _PYTHON = "java", "python"


def describe() -> dict[str, Any]:
    """The SBOM of the current Python environment.

    Libraries of the operating system are not listed. Libraries inside a package are listed if the
    package has its own SBOM (PEP 770), which is referenced.

    Raises:
        ServerError: There is no Java that could run TorchServe.
    """
    found = {item.name: item for item in map(_Package.read, reversed(list(distributions())))}
    itself = found.pop("marship")
    components = {name: _component(item) for name, item in sorted(found.items())}
    refs = {name: component["bom-ref"] for name, component in components.items()}
    root = _component(itself) | {"type": "application"}
    needed = {refs[name]: _needed(item, refs) for name, item in sorted(found.items())}
    return document(
        root,
        [_python(), _java(), *components.values()],
        depends={root["bom-ref"]: [_JAVA, _PYTHON, *_needed(itself, refs)], **needed},
        incomplete=[root["bom-ref"]],
    )


@dataclass(frozen=True, slots=True)
class _Package:
    """An installed package; cached, as Python 3.11 parses metadata on each access."""

    name: str
    metadata: Message
    item: Distribution

    @classmethod
    def read(cls, item: Distribution) -> "_Package":
        metadata = cast("Message", item.metadata)  # as typed, its protocol has no get
        return cls(normalized(metadata["Name"]), metadata, item)


def _component(package: _Package) -> Component:
    component = python_package(package.metadata["Name"], package.metadata["Version"])
    if stated := licences(package.metadata):
        component["licenses"] = stated
    if bills := list(_bills(package.item)):
        component["externalReferences"] = bills
    if package.name == "torchserve":
        jar = Path(str(package.item.locate_file(frontend.JAR)))
        component["components"] = [frontend.component(_digest(jar))]
    return component


def _bills(item: Distribution) -> Iterator[dict[str, Any]]:
    """The SBOMs of a wheel in `.dist-info/sboms/`."""
    for line in (item.read_text("RECORD") or "").splitlines():
        name = line.partition(",")[0]
        if ".dist-info/sboms/" in name:
            digest = _digest(Path(str(item.locate_file(name))))
            yield {"type": "bom", "url": name, "hashes": sha256(digest)}


def _needed(package: _Package, refs: dict[str, str]) -> list[str]:
    """The installed dependencies of a package, including those of its extras."""
    extras = ["", *package.metadata.get_all("Provides-Extra", [])]
    needed = []
    for text in package.metadata.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        name = normalized(requirement.name)
        if name in refs and _applies(requirement, extras):
            needed.append(refs[name])
    return needed


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def _python() -> Component:
    version = platform.python_version()
    name = platform.python_implementation()
    return {
        "type": "platform",
        "bom-ref": _PYTHON,
        "name": name,
        "version": version,
        "purl": package_url("generic", name.lower(), version),
    }


def _java() -> Component:
    """The Java runtime of TorchServe, as described by its `release` file."""
    found = java.find()
    facts = _release(found.path.resolve().parents[1] / "release")
    return {
        "type": "platform",
        "bom-ref": _JAVA,
        "name": "java",
        "version": facts.get("JAVA_VERSION", str(found.version)),
        "properties": properties(
            {"path": found.path, "implementor": facts.get("IMPLEMENTOR")},
        ),
    }


def _release(file: Path) -> dict[str, str]:
    lines = file.read_text().splitlines() if file.is_file() else []
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
