"""Writes a typed client: a package that needs NumPy alone, and no marship."""

import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from marship import storage
from marship.client.typed import retries, tensors, transport
from marship.client.typed.classes import Classes, docstring
from marship.client.typed.methods import methods
from marship.errors import NotFoundError, UsageError

_ROOM = f"{__package__}."
_MODULES = (retries, tensors, transport)
"""They come with each package, with an underscore before their names."""
_STANDARD = {
    "Iterator": "from collections.abc import Iterator",
    "Sequence": "from collections.abc import Sequence",
}


def write(document: Mapping[str, Any], folder: Path, version: str | None = None) -> list[Path]:
    """Write the package of a version.

    Args:
        document: The OpenAPI document of one model.
        folder: The package; its name must be one that Python can import.
        version: As of `served`.

    Returns:
        Its files.

    Raises:
        UsageError: The folder cannot be a package, holds other files, or the model cannot be asked.
    """
    files = {
        "__init__.py": source(document, version),
        **{f"_{each.__name__.removeprefix(_ROOM)}.py": _source(each) for each in _MODULES},
        "py.typed": "",
    }
    _check_folder(folder, set(files))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with storage.replacing(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def _source(module: ModuleType) -> str:
    """A module's code, which imports the others of the package."""
    return Path(str(module.__file__)).read_text(encoding="utf-8").replace(_ROOM, "._")


def _check_folder(folder: Path, own: set[str]) -> None:
    if not folder.name.isidentifier() or keyword.iskeyword(folder.name):
        raise UsageError(
            f"--out must name a folder that Python can import, got {folder.name!r}. Use letters, "
            "digits and underscores, and no word of Python itself."
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out must be a folder, got the file {folder}.")
    others = (
        {path.name for path in folder.iterdir()} - own - {"__pycache__"}
        if folder.exists()
        else set()
    )
    if others:
        raise UsageError(
            f"{folder} must be new or hold a client, got {', '.join(sorted(others)[:3])} in it. "
            "Name another folder."
        )


def served(document: Mapping[str, Any], version: str | None = None) -> Mapping[str, Any]:
    """The version that a client is written for.

    Args:
        document: The OpenAPI document of one model.
        version: None is the default version, or the only one.

    Raises:
        NotFoundError: The document has no such version.
    """
    models: list[Mapping[str, Any]] = document["x-marship-models"]
    if version is None:
        return next((one for one in models if one["is_default"]), models[0])
    found = [one for one in models if one["version"] == version]
    if not found:
        known = ", ".join(one["version"] for one in models)
        raise NotFoundError(f"--version must be one of {known}, got {version}.")
    return found[0]


def source(document: Mapping[str, Any], version: str | None = None) -> str:
    """The code of the package's own module."""
    model = served(document, version)
    classes = Classes()
    body = methods(model, document, classes)
    about = docstring(f"A client of {model['name']} {model['version']}, written by marship client.")
    path = f"/predictions/{quote(model['name'], safe='')}"
    if not model["is_default"]:
        path += f"/{quote(model['version'], safe='')}"
    parts = [
        *classes.sources.values(),
        f"class Client(TypedConnection):\n    {docstring('Asks ' + model['name'] + '.')}\n\n{body}",
    ]
    code = "\n\n\n".join(part.rstrip() for part in parts)
    names = ["Client", *classes.sources, "ServiceError"]
    listed = "".join(f"    {name!r},\n" for name in sorted(names))
    head = f"{about}\n\n{_imports(code)}\n\nPATH = {path!r}"
    return f"{head}\n__all__ = [\n{listed}]\n\n\n{code}\n"


def _imports(code: str) -> str:
    """The imports that the code needs."""
    used = set(re.findall(r"\w+", code))
    abc = [name for name in ("Iterator", "Sequence") if name in used]
    typing = [name for name in ("Any", "Literal") if name in used]
    data = [name for name in ("dataclass", "field") if name in used]
    own = ["TypedConnection", "ServiceError"]
    own += [
        name
        for name in ("OCTETS_TYPE", "decode", "picture_bytes", "recording_bytes")
        if name in used
    ]
    standard = [
        *([f"from collections.abc import {', '.join(abc)}"] if abc else []),
        *([f"from dataclasses import {', '.join(data)}"] if data else []),
        *([f"from typing import {', '.join(typing)}"] if typing else []),
    ]
    numpy = ["import numpy as np", "import numpy.typing as npt"] if "npt" in used else []
    groups = [standard, numpy, [f"from ._transport import {', '.join(own)}"]]
    return "\n\n".join("\n".join(group) for group in groups if group)
