"""The server's private copies of verified archives, which other users cannot replace.

A file may be modified between verifying and unpacking it. So with a trust folder TorchServe never
reads the model store: an archive is copied into a folder that only the server's user can access,
the copy is verified, and TorchServe uses that folder as its store.
The signature is verified first, and no more is copied than the size that it states.
TorchServe unpacks before it responds to a registration, so the copy is removed right after.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from marship import storage, texts
from marship.errors import NotFoundError, PackageError, SignatureError, StorageError, UsageError
from marship.trust.envelope import MAX_SIGNATURE_BYTES
from marship.trust.policy import Trust, Verified
from marship.trust.signature import beside

MOST_UNSTATED_BYTES = 8 << 30
_CHUNK_BYTES = 1 << 20
_OTHER_MODELS = (".model", ".gz", ".tgz")  # which TorchServe would load, and which cannot be signed


def open_vault(folder: Path) -> None:
    """Create an empty vault, accessible to its owner only."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)


def admit(vault: Path, store: Path, file_name: str, trust: Trust, model: str | None) -> Verified:
    """Copy an archive of the store into the vault under its name, verified.

    Args:
        vault: The vault's folder.
        store: The folder with the archive and its signature.
        file_name: The archive's file name.
        trust: The trusted keys.
        model: The model's name on the server; None is the archive's.

    Raises:
        NotFoundError: It is not in the store.
        SignatureError: It is unsigned, modified, renamed, or signed by another key, or its model
            has another name.
        PackageError: It is ambiguous to zip readers, or too large.
        StorageError: The disk of the vault is full.
    """
    with drafts(vault) as draft:
        verified = copy_verified(draft, store, file_name, trust, model)
        (draft / file_name).replace(vault / file_name)
    return verified


@contextmanager
def drafts(vault: Path) -> Iterator[Path]:
    """A temporary folder in the vault for copies that TorchServe must not see yet.

    Raises:
        StorageError: The vault cannot be written to.
    """
    with (
        storage.explained(vault),
        # an abandoned copy may still be written to
        tempfile.TemporaryDirectory(dir=vault, prefix=".", ignore_cleanup_errors=True) as folder,
    ):
        yield Path(folder)


def copy_verified(
    draft: Path, store: Path, file_name: str, trust: Trust, model: str | None
) -> Verified:
    """Copy an archive of the store into a folder of the vault, verified.

    Raises:
        MarshipError: As `admit`.
    """
    source = store / file_name
    if not source.is_file() or source.suffix != ".mar":
        held = ", ".join(sorted(file.name for file in store.glob("*.mar"))) or "no archive"
        raise NotFoundError(
            f"{file_name} must be a .mar file in the model store {store}, which holds {held}."
        )
    copy = draft / file_name
    with storage.explained(copy):
        _copy_signature(beside(source), beside(copy))
        _copy_signed(source, copy, trust.stated_bytes(copy))
    verified = trust.verify(copy)
    if model not in (None, verified.contents.model):
        raise SignatureError(
            f"{file_name} must be registered under the name that was signed, "
            f"{verified.contents.model}, got {model}. Give that one with --name."
        )
    return verified


def admit_at_start(vault: Path, store: Path, load_models: str, trust: Trust) -> list[Verified]:
    """Admit the archives to load at startup, by TorchServe's setting `load_models`.

    Raises:
        UsageError: It would load other files than `.mar`.
        SignatureError: As `admit`; also for any archive in the store, if all are loaded.
    """
    if load_models.strip().lower() != "all":
        entries = [entry.strip().rpartition("=") for entry in load_models.split(",")]
        return [admit(vault, store, file, trust, name or None) for name, _, file in entries if file]
    for path in store.iterdir():
        if not path.name.startswith(".") and (path.is_dir() or path.suffix in _OTHER_MODELS):
            raise UsageError(
                f"with a trust folder all models must be .mar files, got {path}. "
                "Take it out of the store, or name the models to load."
            )
    names = sorted(path.name for path in store.glob("*.mar"))
    return [admit(vault, store, name, trust, None) for name in names]


def _copy_signed(source: Path, target: Path, stated_bytes: int | None) -> None:
    """Copy an archive, unless it is larger than its signature states.

    What is smaller cannot verify either, and then the error tells what changed in it.

    A signature of OpenSSF Model Signing states none: there `MOST_UNSTATED_BYTES` is the bound.
    """
    with _opened(source) as reader:
        size_bytes = os.fstat(reader.fileno()).st_size
        if stated_bytes is not None and size_bytes > stated_bytes:
            raise SignatureError(
                f"{source.name} must be as it was signed, {stated_bytes:,} bytes, got "
                f"{size_bytes:,}. Get the original again, or sign it anew after you looked at "
                "what changed: marship verify"
            )
        if stated_bytes is None and size_bytes > MOST_UNSTATED_BYTES:
            raise PackageError(
                f"{source.name} must have at most {MOST_UNSTATED_BYTES:,} bytes, since its "
                f"signature states no size, got {size_bytes:,}. Sign it with an Ed25519 key."
            )
        free_bytes = shutil.disk_usage(target.parent).free
        if size_bytes > free_bytes:
            raise StorageError(
                f"{source.name} must fit into the server's home, which has {free_bytes:,} bytes "
                f"free, got {size_bytes:,}. Free some space."
            )
        _copy(reader, target, size_bytes)


def _copy_signature(source: Path, target: Path) -> None:
    """Copy a signature, if there is one; verification reports if it is missing or too large."""
    if source.exists():
        with _opened(source) as reader:
            _copy(reader, target, MAX_SIGNATURE_BYTES + 1)


def _opened(path: Path) -> BinaryIO:
    try:
        return texts.open_file(path)
    except OSError as error:
        raise SignatureError(
            f"{path} must be a readable file, got: {error.strerror}. Put one there."
        ) from error


def _copy(reader: BinaryIO, target: Path, most_bytes: int) -> None:
    """Copy up to a size, as the file may grow meanwhile."""
    left_bytes = most_bytes
    with target.open("wb") as writer:
        while left_bytes and (chunk := reader.read(min(left_bytes, _CHUNK_BYTES))):
            writer.write(chunk)
            left_bytes -= len(chunk)


def dismiss(vault: Path) -> None:
    """Remove the copies, once TorchServe has unpacked them."""
    for path in vault.glob("*.mar"):
        path.unlink(missing_ok=True)
