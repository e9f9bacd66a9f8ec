"""The archives of a host: found, verified and extracted."""

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import marship
from marship.errors import LoadError, PackageError, UsageError
from marship.trust import archive, contents, extract
from marship.trust.policy import Trust

_OWN = Path(marship.__file__).parent
_DEFAULTS = {"responseTimeout": 120.0, "batchSize": 1, "minWorkers": 1}
"""TorchServe's, for what model-config.yaml leaves out."""


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model that is ready to be loaded.

    Attributes:
        name: Its name.
        version: Its version.
        handler: The handler's file.
        config: The parsed model-config.yaml.
        folder: The extracted archive.
    """

    name: str
    version: str
    handler: str
    config: dict[str, Any]
    folder: Path

    @property
    def workers(self) -> int:
        """Workers by the archive's own settings."""
        return max(1, int(self._number("minWorkers")))

    @property
    def batch(self) -> int:
        """The most requests of a batch."""
        return max(1, int(self._number("batchSize")))

    @property
    def timeout_s(self) -> float:
        """How long a batch may take."""
        return self._number("responseTimeout")

    @property
    def device_id(self) -> int | None:
        """The first accelerator, for a model that asks for one."""
        section = self.config.get("marship") or {}
        return None if section.get("providers", ["cpu"])[:1] == ["cpu"] else 0

    def _number(self, name: str) -> float:
        value = self.config.get(name)
        value = _DEFAULTS[name] if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise LoadError(
                f"{name} in model-config.yaml of {self.name} must be a number, got {value!r}. "
                "Package the model again."
            )
        return float(value)


def find(given: Sequence[str], trust: Trust | None, downloads: Path) -> list[Path]:
    """The archives that are named: files, folders of them, and URLs.

    Args:
        given: As on the command line.
        trust: Keys that archives must be signed with; a URL needs them.
        downloads: A folder for what is fetched.

    Raises:
        UsageError: A file does not exist, a folder has no archive, or a URL comes without keys.
        MarshipError: One cannot be fetched, or its signature is not by such a key.
    """
    found: list[Path] = []
    for one in given:
        path = Path(one)
        if one.lower().startswith(("http://", "https://")):  # RFC 3986, 3.1
            found.append(_fetched(one, trust, downloads))
        elif path.is_dir():
            inside = sorted(path.glob("*.mar"))
            if not inside:
                raise UsageError(f"{path} must hold .mar files, got none. Mount the models there.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{path} must be a .mar file or a folder of them, got none there.")
    return found


def _fetched(url: str, trust: Trust | None, downloads: Path) -> Path:
    if trust is None:
        raise UsageError(
            "an archive that is fetched must be signed with a pinned key, got a URL without "
            "--trust. Name the folder of public keys."
        )
    from marship.trust import download

    downloads.mkdir(mode=0o700, exist_ok=True)
    return download.fetch(url, trust, downloads).path


def prepare(path: Path, trust: Trust | None, folder: Path) -> HostedModel:
    """Verify an archive, and extract what was verified.

    Args:
        path: The archive.
        trust: Keys that it must be signed with; None takes any.
        folder: For the files; it must not exist.

    Raises:
        SignatureError: It is not signed with one of the keys.
        PackageError: It cannot be read, or names no handler.
    """
    plain = contents.read(path) if trust is None else trust.verify(path).contents
    config = archive.settings(path, plain)
    handler = str(plain.manifest["model"].get("handler", "")).partition(":")[0]
    if not handler:
        raise PackageError(f"{path} must name a handler, got none. Package the model again.")
    folder.mkdir(mode=0o700, parents=True)
    extract.unpack(path, plain, folder)
    _add_bytecode(folder / "marship")
    return HostedModel(plain.model, plain.version, handler, config, folder)


def _add_bytecode(copy: Path) -> None:
    """Take bytecode from this installation for modules of an archive that are the same.

    Else every start would compile them: half a second. Python takes bytecode whose source has
    the time of change and the size that it notes (PEP 552), so both files are copied.
    """
    for file in copy.rglob("*.py"):
        own = _OWN / file.relative_to(copy)
        cached = Path(importlib.util.cache_from_source(str(own)))
        if cached.is_file() and own.is_file() and own.read_bytes() == file.read_bytes():
            target = Path(importlib.util.cache_from_source(str(file)))
            target.parent.mkdir(exist_ok=True)
            shutil.copystat(own, file)
            shutil.copyfile(cached, target)
