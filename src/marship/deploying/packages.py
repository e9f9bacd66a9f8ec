"""Which Python packages a host needs for archives, in the versions of this installation.

Found by reading imports, from the handler on: an archive carries all of marship's decoders, and
needs those alone that its handler reaches.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from marship.errors import UsageError
from marship.trust.archive import Archive

HOST = (
    *("cryptography", "httptools", "numpy", "onnxruntime", "orjson", "packaging", "psutil"),
    *("pyyaml", "requests", "rich", "typer", "uvloop"),
)
"""What `marship host` imports itself, beside the archive."""
_ONLY_TORCHSERVE = {"ts"}
_GPU = {"onnxruntime": "onnxruntime-gpu"}


def pinned(archives: Iterable[Archive], *, gpu: bool) -> list[str]:
    """Requirements with exact versions, those of requirements among them.

    Args:
        archives: What the image serves.
        gpu: Whether ONNX Runtime is the one for CUDA.

    Raises:
        UsageError: A package that an archive imports is not installed here.
    """
    wanted = set(HOST)
    for archive in archives:
        wanted |= {_package(archive, module) for module in sorted(imported(archive))}
    found: dict[str, str] = {}
    _add(wanted, found)
    return sorted(
        f"{_GPU.get(name, name) if gpu else name}=={version}" for name, version in found.items()
    )


def imported(archive: Archive) -> set[str]:
    """Modules of others that an archive's handler imports, itself or by what it imports."""
    sources = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): data
        for name, data in archive.python().items()
    }
    handler = archive.handler.partition(":")[0].removesuffix(".py")
    others: set[str] = set()
    known: set[str] = set()
    waiting = [handler, "marship.serving.hosts.direct.entry"]
    while waiting:
        module = waiting.pop()
        if module in known or module not in sources:
            continue
        known.add(module)
        for target in _imports(sources[module], sources):
            if target in sources:
                waiting.append(target)
            else:
                others.add(target.partition(".")[0])
    return others - sys.stdlib_module_names - _ONLY_TORCHSERVE - {"marship"}


def _imports(source: bytes, sources: Mapping[str, bytes]) -> Iterator[str]:
    """Modules that a file imports, wherever the import stands; packages above them, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in sources else node.module for name in inner]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The packages of each module; all that are installed are read for it."""
    return packages_distributions()


def _package(archive: Archive, module: str) -> str:
    found = _distributions().get(module)
    if not found:
        raise UsageError(
            f"{module}, which {archive.name} imports, must be installed here, since the image gets "
            "the same version, got none. Install it."
        )
    return canonicalize_name(found[0])


def _add(names: Iterable[str], found: dict[str, str]) -> None:
    """Add packages with what they require, by name."""
    for name in names:
        if name in found:
            continue
        try:
            item = distribution(name)
        except PackageNotFoundError as error:
            raise UsageError(
                f"{name} must be installed here, since the image gets the same version, got none. "
                "Install it."
            ) from error
        found[name] = item.version.partition("+")[0]
        needed = map(Requirement, item.requires or ())
        _add(
            [
                canonicalize_name(one.name)
                for one in needed
                if one.marker is None or one.marker.evaluate({"extra": ""})
            ],
            found,
        )
