"""The environment's bill of materials: valid, whole, and honest about TorchServe's Java."""

import json
import re
import zipfile
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from marship.cli import app
from marship.engines.torchserve import java
from marship.packaging.sbom import environment, frontend
from marship.packaging.sbom.cyclonedx import normalized

pytestmark = pytest.mark.slow

CONSTANTS = {
    "gson": "com/google/gson/internal/GsonBuildConfig.class",
    "grpc-core": "io/grpc/internal/GrpcUtil.class",
    "grpc-netty-shaded": "io/grpc/internal/GrpcUtil.class",
    "grpc-protobuf": "io/grpc/internal/GrpcUtil.class",
    "grpc-stub": "io/grpc/internal/GrpcUtil.class",
    "picocli": "picocli/CommandLine.class",
    "junit": "junit/runner/Version.class",
    "netty-all": "META-INF/io.netty.versions.properties",
    "groovy-all": "META-INF/groovy-release-info.properties",
    "ant": "org/apache/tools/ant/version.txt",
    "jquery": "META-INF/resources/webjars/jquery/3.5.1/jquery.js",
}


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    """Of the environment that runs this test."""
    return environment.describe()


@pytest.fixture(scope="module")
def jar() -> zipfile.ZipFile:
    """TorchServe's frontend."""
    return zipfile.ZipFile(Path(str(distribution("torchserve").locate_file(frontend.JAR))))


def components(bill: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The components by reference, nested ones and the root included."""
    found = {}
    waiting = [bill["metadata"]["component"], *bill["components"]]
    while waiting:
        component = waiting.pop()
        assert component["bom-ref"] not in found
        found[component["bom-ref"]] = component
        waiting += component.get("components", [])
    return found


def test_it_is_valid(bill: dict[str, Any]) -> None:
    """The schema of CycloneDX 1.6, in its strict form, accepts it."""
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None


def test_every_installed_package_is_listed(bill: dict[str, Any]) -> None:
    """Each package that Python sees is a component, with its version."""
    listed = {c["name"]: c["version"] for c in components(bill).values() if "version" in c}
    for item in distributions():
        assert normalized(item.name) in map(normalized, listed)
    assert listed["numpy"] == distribution("numpy").version
    assert listed["torch"] == distribution("torch").version


def test_references_lead_somewhere(bill: dict[str, Any]) -> None:
    """Who needs what names components of the bill, and the root needs what marship declares."""
    found = components(bill)
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert set(needs) | {ref for refs in needs.values() for ref in refs} <= set(found)
    root = needs[bill["metadata"]["component"]["bom-ref"]]
    assert {"numpy", "torchserve", "java"} <= {found[ref]["name"] for ref in root}


def test_licences_are_reported(bill: dict[str, Any]) -> None:
    """Where metadata states a licence, as nearly all does, the component does."""
    found = [c for c in bill["components"] if c["type"] == "library"]
    assert sum("licenses" in c for c in found) > 0.9 * len(found)


def test_bills_inside_wheels_are_named(bill: dict[str, Any]) -> None:
    """Pillow brings a bill of the libraries that its wheel holds (PEP 770)."""
    (pillow,) = (c for c in bill["components"] if c["name"] == "pillow")
    assert all(r["type"] == "bom" and r["hashes"] for r in pillow["externalReferences"])


def test_java_is_the_one_that_would_run(bill: dict[str, Any]) -> None:
    """Java's version is that of the runtime that `marship serve` would find."""
    version = components(bill)["java"]["version"]
    assert int(version.split(".")[0]) == java.find().version


def test_the_unsafe_parts_are_listed(bill: dict[str, Any]) -> None:
    """TorchServe's old netty and gRPC stand there with addresses that scanners know."""
    urls = {c.get("purl") for c in components(bill).values()}
    assert {
        "pkg:maven/io.netty/netty-all@4.1.53.Final",
        "pkg:maven/io.grpc/grpc-netty-shaded@1.50.0",
        "pkg:maven/org.apache.logging.log4j/log4j-core@2.17.1",
    } <= urls


@pytest.mark.parametrize("part", [p for p in frontend.PARTS if p.stated_in_jar], ids=str)
def test_versions_are_those_in_the_jar(jar: zipfile.ZipFile, part: frontend.Part) -> None:
    """Each version that is said to be in the jar can be read there."""
    text = jar.read(CONSTANTS[part.name.partition("/")[2]]).decode("latin-1")
    assert part.version is not None
    assert re.search(rf"(?<![\d.]){re.escape(part.version)}(?![\d])", text)


def test_no_part_of_the_jar_is_left_out(jar: zipfile.ZipFile) -> None:
    """Every class belongs to a listed part or to TorchServe, and every part has classes."""
    folders = [folder for part in frontend.PARTS for folder in part.folders]
    names = [n for n in jar.namelist() if n.endswith((".class", ".js"))]
    own = ("org/pytorch/serve/", "META-INF/versions/", "module-info.class")
    assert [n for n in names if not n.startswith((*folders, *own))] == []
    assert [f for f in folders if not any(n.startswith(f) for n in names)] == []


def test_the_threat_model_speaks_of_these_parts() -> None:
    """The versions whose flaws docs/threat-model.md accepts are those in the bill."""
    text = (Path(__file__).parents[4] / "docs" / "threat-model.md").read_text()
    versions = {part.name.partition("/")[2]: part.version for part in frontend.PARTS}
    told = re.findall(r"^\| ([a-z0-9-]+) (\d[\d.]*\d)", text, re.MULTILINE)
    assert {"netty", "grpc-netty-shaded", "commons-compress"} <= {name for name, _ in told}
    for name, version in told:
        full = {"netty": "netty-all", "log4j": "log4j-core"}.get(name, name)
        assert str(versions[full]).removesuffix(".Final") == version


def test_another_jar_is_not_taken_for_it() -> None:
    """Of a jar with another digest no parts are claimed."""
    component = frontend.component("0" * 64)
    assert component["components"] == []
    assert "unknown" in component["properties"][0]["value"]


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    """`marship sbom` prints JSON, and with --out writes the same to a file."""
    printed = CliRunner().invoke(app, ["sbom"])
    assert printed.exit_code == 0, printed.output
    out = tmp_path / "bom.json"
    assert CliRunner().invoke(app, ["sbom", "--out", str(out)]).exit_code == 0
    one, other = json.loads(printed.stdout), json.loads(out.read_text())
    assert one["components"] == other["components"]
    assert one["serialNumber"] != other["serialNumber"]
