"""Archives in a model store that is at hand: there, and whole.

TorchServe takes any file for an archive and reports a damaged one as a module that is missing.
"""

import json
import zipfile
import zlib
from pathlib import Path

from marship.errors import NotFoundError, PackageError

MANIFEST = "MAR-INF/MANIFEST.json"


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
