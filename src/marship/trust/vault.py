"""The server's own copies of verified archives, where nobody else can exchange them.

Between verifying a file and unpacking it somebody may write to it. So with a trust folder
TorchServe never reads the model store: an archive is copied into a folder that only the
server's user can enter, the copy is verified, and TorchServe gets that folder for its store.
It unpacks before it answers a registration, so the copy is removed right after.
"""

import shutil
import tempfile
from pathlib import Path

from marship.errors import NotFoundError, SignatureError, UsageError
from marship.trust.policy import Trust, Verified
from marship.trust.signature import beside

_OTHER_MODELS = (".model", ".gz", ".tgz")  # that TorchServe would load, and nobody can sign


def open_vault(folder: Path) -> None:
    """Make an empty vault, for its owner only."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)


def admit(vault: Path, store: Path, file_name: str, trust: Trust, model: str | None) -> Verified:
    """Put a verified copy of one of the store's archives into the vault, under its own name.

    Args:
        vault: The server's folder.
        store: Where archive and signature lie.
        file_name: The archive's.
        trust: The keys that count.
        model: The name that it shall have on the server; None leaves it to the archive.

    Raises:
        NotFoundError: The store does not hold it.
        SignatureError: It is unsigned, altered, renamed, or signed by another key, or its model
            has another name.
        PackageError: Readers may disagree on what is in it.
    """
    source = store / file_name
    if not source.is_file() or source.suffix != ".mar":
        held = ", ".join(sorted(file.name for file in store.glob("*.mar"))) or "no archive"
        raise NotFoundError(
            f"{file_name} must be a .mar file in the model store {store}, which holds {held}."
        )
    with tempfile.TemporaryDirectory(dir=vault, prefix=".") as draft:
        copy = Path(draft) / file_name
        shutil.copyfile(source, copy)
        if beside(source).is_file():
            shutil.copyfile(beside(source), beside(copy))
        verified = trust.verify(copy)
        if model not in (None, verified.contents.model):
            raise SignatureError(
                f"{file_name} must be registered under the name that was signed, "
                f"{verified.contents.model}, got {model}. Give that one with --name."
            )
        copy.replace(vault / file_name)
    return verified


def admit_at_start(vault: Path, store: Path, load_models: str, trust: Trust) -> list[Verified]:
    """Admit what TorchServe shall load when it starts: its setting `load_models`.

    Raises:
        UsageError: It would load something that is no `.mar`.
        SignatureError: As `admit`; also for any archive in the store, if all shall be loaded.
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


def dismiss(vault: Path) -> None:
    """Remove the copies, which TorchServe has unpacked."""
    for path in vault.glob("*.mar"):
        path.unlink(missing_ok=True)
