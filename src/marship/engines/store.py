"""Archives in a local model store: whether they are valid, whose they are, and what is in them."""

import hashlib
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from marship import texts
from marship.errors import NotFoundError, PackageError

if TYPE_CHECKING:
    from marship.trust.policy import Trust

_MANIFEST_FILE = "MAR-INF/MANIFEST.json"
_SHOWN = 10
_FIRST_VERSION = "1.0"  # TorchServe's default for a manifest without version


@dataclass(frozen=True, slots=True)
class Identity:
    """The model's name and version by the archive's manifest, regardless of its file name."""

    name: str
    version: str


def pinned(trust: Path | None) -> "Trust | None":
    """The keys of a trust folder; None without a folder.

    Raises:
        UsageError: It is not a valid trust folder.
    """
    if trust is None:
        return None
    from marship.trust import policy

    return policy.Trust.load(trust)


def holds(store: Path) -> str:
    """What a store holds, for messages: the names of some archives."""
    names = sorted(file.name for file in store.glob("*.mar"))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"holds {', '.join(names[:_SHOWN]) or 'no archive'}{more}"


def check_archive(store: Path, name: str) -> Identity:
    """Check that a file in the store is an archive that TorchServe can unpack.

    Its manifest and settings, which TorchServe and the workers parse without bounds, are checked
    against our limits first.

    Returns:
        The archive's identity.

    Raises:
        NotFoundError: It is not in the store.
        PackageError: It is corrupted, not an archive, or ambiguous to different zip readers.
    """
    from marship.trust import archive  # it imports NumPy, which --help does not need

    path = store / name
    if not path.exists():
        raise NotFoundError(f"{name} must lie in the model store {store}, which {holds(store)}.")
    if path.suffix != ".mar" or path.is_dir():  # TorchServe accepts folders and tgz as well
        return _unpacked_identity(path)
    plain, _ = archive.read_settings(path)
    handler = str(plain.manifest["model"].get("handler", "")).partition(":")[0]
    if not handler or ("." in handler and Path(handler).name not in plain.files):
        raise PackageError(
            f"{path} must hold the handler that it names, got none of the name {handler!r}. "
            "Package the model again."
        )
    return Identity(plain.model, plain.version)


def _unpacked_identity(path: Path) -> Identity:
    """The identity of a folder or a tgz, of which only the manifest is read."""
    try:
        model = texts.json_value(_manifest(path))["model"]
        return Identity(str(model["modelName"]), str(model.get("modelVersion", _FIRST_VERSION)))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason: object = error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = repr(error)
    raise PackageError(
        f"{path} must have a readable {_MANIFEST_FILE} with its model's name, got: {reason}. "
        "Package it again."
    )


def _manifest(path: Path) -> bytes:
    if path.is_dir():
        with texts.open_file(path / _MANIFEST_FILE) as plain:
            return plain.read(texts.MOST_BYTES + 1)
    with tarfile.open(path) as packed:
        file = packed.extractfile(packed.getmember(_MANIFEST_FILE))
        return b"" if file is None else file.read(texts.MOST_BYTES + 1)


def files_of(path: Path) -> str | None:
    """A digest of a `.mar`'s central directory, which includes the checksums of its files.

    It distinguishes builds without reading the files; signatures protect against attackers. None
    if it is not a `.mar`, or not a valid archive any more.
    """
    if path.suffix != ".mar" or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as zipped:
            listed = [(info.filename, info.file_size, info.CRC) for info in zipped.infolist()]
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError):
        return None
    return hashlib.sha256(repr(listed).encode()).hexdigest()
