"""Archives in a model store that is at hand: there, whole, and signed where that is asked for.

TorchServe takes any file for an archive and reports a damaged one as a module that is missing.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from marship.errors import NotFoundError, PackageError
from marship.torchserve.home import Home

MANIFEST = "MAR-INF/MANIFEST.json"


@contextmanager
def admitted(home: Home, values: Mapping[str, str], trust: Path | None) -> Iterator[dict[str, str]]:
    """What TorchServe is told: the settings, and with a trust folder the vault for its store.

    The vault holds verified copies of what is loaded at the start; when the server answers,
    they are unpacked and go.

    Raises:
        PackageError: An archive to load at the start is not as one of the keys signed it.
    """
    if trust is None:
        yield dict(values)
        return
    from marship.trust import policy, vault

    vault.open_vault(home.verified)
    try:
        keys = policy.Trust.load(trust)
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

    Raises:
        NotFoundError: The store does not hold it.
        PackageError: It is damaged, or no archive.
    """
    path = store / name
    if not path.exists():
        held = ", ".join(sorted(file.name for file in store.glob("*.mar"))) or "no archive"
        raise NotFoundError(f"{name} must lie in the model store {store}, which holds {held}.")
    is_zip = path.suffix == ".mar" and path.is_file()  # else a folder or a tgz
    if is_zip and (fault := _fault(path)):
        raise PackageError(f"{path} must be a whole archive, got {fault}. Package it again.")


def _fault(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                return f"a damaged {damaged}"
            if outside := [n for n in archive.namelist() if n.startswith("/") or ".." in n]:
                return f"a file that would be unpacked elsewhere, {outside[0]}"
            model = json.loads(archive.read(MANIFEST))["model"]
            handler = str(model["handler"]).partition(":")[0]
            if "." in handler and Path(handler).name not in archive.namelist():
                return f"none of the handler {handler} that it names"
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        return "none: it is no zip file, or cut off"
    except (KeyError, TypeError, ValueError):
        return f"none with a readable {MANIFEST}"
    return None
