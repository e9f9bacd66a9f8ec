"""The components of TorchServe's frontend, a jar that bundles classes of other projects.

Its build omits the files that identify them. So they are listed here for the jar of TorchServe
0.12.0, its last release. Versions with `stated_in_jar` are recorded in the jar; the others are
those of TorchServe's build files (frontend/gradle.properties, server, archive), which Gradle may
have upgraded. Parts without a version are transitive dependencies of unknown version.
"""

from typing import NamedTuple

from marship.packaging.sbom.cyclonedx import Component, package_url, properties, sha256

JAR = "ts/frontend/model-server.jar"
SHA256 = "ce340411ce54beaacd3dcfa31644a9aa369a83a36ed687172ba1088a13123dfe"


class Part(NamedTuple):
    """A Maven artifact, and the folders of the jar with its classes."""

    name: str
    version: str | None
    folders: tuple[str, ...]
    stated_in_jar: bool = False


PARTS = (
    Part("com.beust/jcommander", None, ("com/beust/",)),
    Part(
        "com.google.api.grpc/proto-google-common-protos",
        None,
        (
            "com/google/api/",
            "com/google/cloud/",
            "com/google/geo/",
            "com/google/logging/",
            "com/google/longrunning/",
            "com/google/rpc/",
            "com/google/type/",
        ),
    ),
    Part("com.google.code.findbugs/jsr305", None, ("javax/annotation/",)),
    Part("com.google.code.gson/gson", "2.10.1", ("com/google/gson/",), stated_in_jar=True),
    Part("com.google.android/annotations", None, ("android/",)),
    Part("com.google.errorprone/error_prone_annotations", None, ("com/google/errorprone/",)),
    Part("com.google.guava/guava", None, ("com/google/common/", "com/google/thirdparty/")),
    Part("com.google.j2objc/j2objc-annotations", None, ("com/google/j2objc/",)),
    Part("com.google.protobuf/protobuf-java", None, ("com/google/protobuf/",)),
    Part("com.github.javaparser/javaparser-core", None, ("com/github/javaparser/",)),
    Part("com.lmax/disruptor", "3.4.4", ("com/lmax/",)),
    Part("com.thoughtworks.qdox/qdox", None, ("com/thoughtworks/",)),
    Part("commons-cli/commons-cli", "1.3.1", ("org/apache/commons/cli/",)),
    Part("commons-io/commons-io", "2.16.1", ("org/apache/commons/io/",)),
    Part("info.picocli/picocli", "4.6.1", ("picocli/",), stated_in_jar=True),
    Part("io.grpc/grpc-core", "1.50.0", ("io/grpc/",), stated_in_jar=True),
    Part("io.grpc/grpc-netty-shaded", "1.50.0", ("io/grpc/netty/",), stated_in_jar=True),
    Part("io.grpc/grpc-protobuf", "1.50.0", ("io/grpc/protobuf/",), stated_in_jar=True),
    Part("io.grpc/grpc-stub", "1.50.0", ("io/grpc/stub/",), stated_in_jar=True),
    Part("io.netty/netty-all", "4.1.53.Final", ("io/netty/",), stated_in_jar=True),
    Part("io.perfmark/perfmark-api", None, ("io/perfmark/",)),
    Part("io.prometheus/simpleclient", "0.9.0", ("io/prometheus/",)),
    Part("jline/jline", None, ("jline/",)),
    Part("junit/junit", "4.13.2", ("junit/", "org/junit/"), stated_in_jar=True),
    Part("org.apache.ant/ant", "1.10.11", ("org/apache/tools/",), stated_in_jar=True),
    Part("org.apache.commons/commons-compress", "1.25.0", ("org/apache/commons/compress/",)),
    Part("org.apache.logging.log4j/log4j-core", "2.17.1", ("org/apache/logging/",)),
    Part("org.apache.logging.log4j/log4j-slf4j-impl", "2.17.1", ("org/slf4j/impl/",)),
    Part("org.checkerframework/checker-qual", None, ("org/checkerframework/",)),
    Part(
        "org.codehaus.groovy/groovy-all",
        "3.0.9",
        ("groovy/", "groovyjarjar", "org/apache/groovy/", "org/codehaus/groovy/"),
        stated_in_jar=True,
    ),
    Part("org.codehaus.mojo/animal-sniffer-annotations", None, ("org/codehaus/mojo/",)),
    Part("org.fusesource.jansi/jansi", None, ("org/fusesource/",)),
    Part("org.hamcrest/hamcrest-core", None, ("org/hamcrest/",)),
    Part("org.junit.jupiter/junit-jupiter-api", None, ("org/junit/jupiter/",)),
    Part("org.junit.platform/junit-platform-launcher", None, ("org/junit/platform/",)),
    Part("org.opentest4j/opentest4j", None, ("org/opentest4j/",)),
    Part("org.pytorch/torchserve-plugins-sdk", "0.0.5", ("org/pytorch/serve/servingsdk/",)),
    Part("org.slf4j/slf4j-api", "1.7.32", ("org/slf4j/",)),
    Part("org.testng/testng", None, ("org/testng/",)),
    Part("org.webjars/jquery", "3.5.1", ("META-INF/resources/webjars/",), stated_in_jar=True),
    Part("org.yaml/snakeyaml", "2.1", ("org/yaml/",)),
)


def component(digest: str) -> Component:
    """The jar with this SHA-256, with its parts if it is the known one."""
    known = digest == SHA256
    return {
        "type": "application",
        "bom-ref": JAR,
        "name": "model-server.jar",
        "hashes": sha256(digest),
        "components": [_part(part) for part in PARTS] if known else [],
        "properties": properties(
            {"parts": "of TorchServe 0.12.0" if known else "unknown: not TorchServe 0.12.0's jar"}
        ),
    }


def _part(part: Part) -> Component:
    group, _, name = part.name.partition("/")
    url = package_url("maven", part.name, part.version)
    source = "the jar" if part.stated_in_jar else "TorchServe's build files"
    found: Component = {"type": "library", "bom-ref": url, "group": group, "name": name}
    if part.version is None:
        return found | {"purl": url, "properties": properties({"version": "not stated anywhere"})}
    return found | {
        "version": part.version,
        "purl": url,
        "properties": properties({"version-from": source}),
    }
