"""Archives in a local model store: whether they exist, are valid, and are signed if required.

TorchServe accepts any file as archive and reports a corrupted one as a missing module.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from marship import storage
from marship.engines.engine import Note
from marship.engines.home import Home
from marship.engines.store import Identity, check_archive, files_of, pinned
from marship.errors import StorageError

if TYPE_CHECKING:
    from marship.trust.policy import Trust


@contextmanager
def admitted(
    home: Home, values: Mapping[str, str], keys: "Trust | None"
) -> Iterator[dict[str, str]]:
    """The settings for TorchServe; with trusted keys, the vault replaces the model store.

    The vault holds verified copies of archives to load at startup; they are removed once the
    server responds, as they are unpacked by then.

    Raises:
        PackageError: An archive to load at startup has no valid signature by a trusted key.
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
        home: The server's home.
        draft: The folder, from `vault.drafts`.
        name: The archive's file name.
        model: The model's name on the server; None is the archive's own.

    Returns:
        The archive's identity.

    Raises:
        NotFoundError: It is not in the store.
        PackageError: It has no valid signature by a trusted key, or is of another model.
    """
    from marship.trust import policy, vault

    record = home.require_running()
    keys = policy.Trust.load(Path(record.trust or ""))
    found = vault.copy_verified(draft, Path(record.model_store), name, keys, model).contents
    return Identity(found.model, found.version)


def write_note(home: Home, name: str, version: str, note: Note) -> None:
    """Record what a version was registered from, and how.

    A client with read-only access to the home records nothing; the model is served regardless.
    """
    with suppress(StorageError):
        storage.write_json(_note(home, name, version), asdict(note))


def read_note(home: Home, name: str, version: str) -> Note | None:
    """The record of a version's registration.

    None for a version that was registered without marship, by a client that cannot write to the
    home, or by the server's configuration.
    """
    path = _note(home, name, version)
    return Note(**storage.read_json(path)) if path.is_file() else None


def has_other_files(home: Home, name: str, version: str, archive: str) -> bool:
    """Whether an archive of the store differs from the one a version was registered from.

    False if there is no record.
    """
    note = read_note(home, name, version)
    store = Path(home.require_running().model_store)
    return note is not None and note.files not in (None, files_of(store / archive))


def _note(home: Home, name: str, version: str) -> Path:
    digest = hashlib.sha256(f"{name} {version}".encode()).hexdigest()  # whatever they hold
    return home.registered / digest


__all__ = [
    "Identity", "admit", "admitted", "check_archive", "files_of", "has_other_files", "pinned",
    "read_note", "write_note",
]  # fmt: skip
