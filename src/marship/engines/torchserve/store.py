"""Archives in a model store that is at hand: there, whole, and signed where that is asked for.

TorchServe takes any file for an archive and reports a damaged one as a module that is missing.
"""

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from marship import storage, texts
from marship.engines.engine import Note
from marship.engines.torchserve.home import Home
from marship.errors import NotFoundError, PackageError, StorageError

if TYPE_CHECKING:
    from marship.trust.policy import Trust

_MANIFEST_FILE = "MAR-INF/MANIFEST.json"
_FIRST_VERSION = "1.0"  # TorchServe's, of a manifest without one


@dataclass(frozen=True, slots=True)
class Identity:
    """The name and the version that an archive gives its model, whatever its file is called."""

    name: str
    version: str


def pinned(trust: Path | None) -> "Trust | None":
    """The keys of a trust folder; None where there is none.

    Raises:
        UsageError: It is not fit to be one.
    """
    if trust is None:
        return None
    from marship.trust import policy

    return policy.Trust.load(trust)


@contextmanager
def admitted(
    home: Home, values: Mapping[str, str], keys: "Trust | None"
) -> Iterator[dict[str, str]]:
    """What TorchServe is told: the settings, and with keys to hold to the vault for its store.

    The vault holds verified copies of what is loaded at the start; when the server answers,
    they are unpacked and go.

    Raises:
        PackageError: An archive to load at the start is not as one of the keys signed it.
    """
    if keys is None:
        yield dict(values)
        return
    from marship.trust import vault

    vault.open_vault(home.verified)
    try:
        store = Path(values["model_store"])
        vault.admit_at_start(home.verified, store, values.get("load_models", ""), keys)
        yield {**values, "model_store": str(home.verified)}
    finally:
        vault.dismiss(home.verified)


def admit(home: Home, draft: Path, name: str, model: str | None) -> Identity:
    """Put a verified copy of an archive into a folder of the running server's vault.

    Args:
        home: The server's.
        draft: The folder, of `vault.drafts`.
        name: The archive's file name.
        model: The name that it shall have on the server; None is its own.

    Returns:
        What the archive says that it is.

    Raises:
        NotFoundError: The store does not hold it.
        PackageError: It is not as one of the trusted keys signed it, or not this model's.
    """
    from marship.trust import policy, vault

    record = home.require_running()
    keys = policy.Trust.load(Path(record.trust or ""))
    found = vault.copy_verified(draft, Path(record.model_store), name, keys, model).contents
    return Identity(found.model, found.version)


def check_archive(store: Path, name: str) -> Identity:
    """Make sure that a name in the store is an archive that TorchServe can unpack.

    Its manifest and settings, which TorchServe and each worker parse without bounds, are held
    against ours first.

    Returns:
        What the archive says that it is.

    Raises:
        NotFoundError: The store does not hold it.
        PackageError: It is damaged, no archive, or one that readers may read differently.
    """
    from marship.trust import archive  # it imports NumPy, which --help does not need

    path = store / name
    if not path.exists():
        held = ", ".join(sorted(file.name for file in store.glob("*.mar"))) or "no archive"
        raise NotFoundError(f"{name} must lie in the model store {store}, which holds {held}.")
    if path.suffix != ".mar" or path.is_dir():  # TorchServe takes folders and tgz as well
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
    """The same of a folder or a tgz, whose manifest alone is read."""
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
    """A digest of what the directory of a `.mar` says of its files, their checksums among it.

    Two builds differ in it, and it costs no reading; against who means harm there are signatures.
    None for what is no `.mar`, or no archive any more.
    """
    if path.suffix != ".mar" or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as zipped:
            listed = [(info.filename, info.file_size, info.CRC) for info in zipped.infolist()]
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError):
        return None
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def write_note(home: Home, name: str, version: str, note: Note) -> None:
    """Keep what a version was registered from, and how.

    A client that may only read the home keeps nothing; the model serves all the same.
    """
    with suppress(StorageError):
        storage.write_json(_note(home, name, version), asdict(note))


def read_note(home: Home, name: str, version: str) -> Note | None:
    """What was kept of a version's registration.

    None for what was registered past marship, by a client that cannot write to the home, or by
    the server's configuration.
    """
    path = _note(home, name, version)
    return Note(**storage.read_json(path)) if path.is_file() else None


def has_other_files(home: Home, name: str, version: str, archive: str) -> bool:
    """Whether an archive of the store is another by now than a version was registered from.

    Where no note was kept that is not known.
    """
    note = read_note(home, name, version)
    store = Path(home.require_running().model_store)
    return note is not None and note.files not in (None, files_of(store / archive))


def _note(home: Home, name: str, version: str) -> Path:
    digest = hashlib.sha256(f"{name} {version}".encode()).hexdigest()  # whatever they hold
    return home.registered / digest
