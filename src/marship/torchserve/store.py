"""Archives in a model store that is at hand: there, whole, and signed where that is asked for.

TorchServe takes any file for an archive and reports a damaged one as a module that is missing.
"""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from marship import archive, storage
from marship.errors import NotFoundError, PackageError
from marship.torchserve.home import Home

if TYPE_CHECKING:
    from marship.trust.policy import Trust


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


def admit(home: Home, name: str, model: str) -> None:
    """Put a verified copy of an archive into the running server's vault.

    Raises:
        NotFoundError: The store does not hold it.
        PackageError: It is not as one of the trusted keys signed it, or not this model's.
    """
    from marship.trust import policy, vault

    record = home.require_running()
    keys = policy.Trust.load(Path(record.trust or ""))
    vault.admit(home.verified, Path(record.model_store), name, keys, model)


def check_archive(store: Path, name: str) -> None:
    """Make sure that a name in the store is an archive that TorchServe can unpack.

    Its manifest and settings, which TorchServe and each worker parse without bounds, are held
    against ours first.

    Raises:
        NotFoundError: The store does not hold it.
        PackageError: It is damaged, no archive, or one that readers may read differently.
    """
    path = store / name
    if not path.exists():
        held = ", ".join(sorted(file.name for file in store.glob("*.mar"))) or "no archive"
        raise NotFoundError(f"{name} must lie in the model store {store}, which holds {held}.")
    if path.suffix != ".mar" or path.is_dir():  # TorchServe takes folders and tgz as well
        return
    plain, _ = archive.read_settings(path)
    handler = str(plain.manifest["model"].get("handler", "")).partition(":")[0]
    if not handler or ("." in handler and Path(handler).name not in plain.files):
        raise PackageError(
            f"{path} must hold the handler that it names, got none of the name {handler!r}. "
            "Package the model again."
        )


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


def note_files(home: Home, name: str, version: str, files: str) -> None:
    """Keep what a version was registered from for as long as the server runs.

    A client that may only read the home keeps nothing; the model serves all the same.
    """
    with suppress(storage.StorageError), storage.replacing(_note(home, name, version)) as draft:
        draft.write_text(files)


def has_other_files(home: Home, name: str, version: str, archive: str) -> bool:
    """Whether an archive of the store is another by now than a version was registered from.

    What was registered past marship, by a client that cannot write to the home, or by the server's
    configuration is not known.
    """
    note = _note(home, name, version)
    store = Path(home.require_running().model_store)
    return note.is_file() and note.read_text() != files_of(store / archive)


def _note(home: Home, name: str, version: str) -> Path:
    digest = hashlib.sha256(f"{name} {version}".encode()).hexdigest()  # whatever they hold
    return home.registered / digest
