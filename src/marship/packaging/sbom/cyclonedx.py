"""The parts of CycloneDX 1.6 (ECMA-424) that marship writes, as JSON objects.

Without its library: cyclonedx-python-lib 11 cannot write model cards and compositions yet. The
tests validate the output against that library's copy of the schema.
"""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.message import Message
from typing import Any
from urllib.parse import quote

from marship.version import VERSION

SPEC_VERSION = "1.6"
SHOWN_LICENCE = 64  # longer values are the licence's text

Component = dict[str, Any]


def document(
    root: Component,
    components: Sequence[Component],
    *,
    depends: Mapping[str, Iterable[str]],
    incomplete: Iterable[str] = (),
) -> dict[str, Any]:
    """A bill of materials.

    Args:
        root: The component that the document describes.
        components: Its components.
        depends: Dependencies: references of components, by the reference of their dependent.
        incomplete: References of components whose parts are not all listed.
    """
    tool = {"type": "application", "name": "marship", "version": VERSION}
    found: dict[str, Any] = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "tools": {"components": [tool]},
            "component": root,
        },
        "components": list(components),
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(set(needed))} for ref, needed in depends.items()
        ],
    }
    if assemblies := sorted(incomplete):
        found["compositions"] = [{"aggregate": "incomplete", "assemblies": assemblies}]
    return found


def normalized(name: str) -> str:
    """A package's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def package_url(kind: str, name: str, version: str | None = None) -> str:
    """A package URL (ECMA-427), such as `pkg:pypi/torch@2.13.0%2Bcpu`."""
    return f"pkg:{kind}/{name}" + (f"@{quote(version, safe='')}" if version else "")


def python_package(name: str, version: str | None) -> Component:
    """A package of PyPI, without its licence."""
    url = package_url("pypi", normalized(name), version)
    component = {"type": "library", "bom-ref": url, "name": name, "purl": url}
    return component | ({"version": version} if version else {})


def sha256(digest: str) -> list[dict[str, str]]:
    """A SHA-256 digest as CycloneDX hashes."""
    return [{"alg": "SHA-256", "content": digest}]


def properties(values: Mapping[str, object]) -> list[dict[str, str]]:
    """Properties, for facts without a field in the format; None values are omitted."""
    return [
        {"name": f"marship:{name}", "value": str(value)}
        for name, value in values.items()
        if value is not None
    ]


def licences(metadata: Message) -> list[dict[str, Any]]:
    """The licences in a package's metadata: an expression (PEP 639), or names."""
    if expression := metadata.get("License-Expression"):
        return [{"expression": expression}]
    stated = (metadata.get("License") or "").strip()
    if 0 < len(stated) <= SHOWN_LICENCE and "\n" not in stated and stated != "UNKNOWN":
        return [{"license": {"name": stated}}]
    names = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier", [])
        if text.startswith("License ::")
    ]
    return [{"license": {"name": name}} for name in names]
