"""Which Python packages a host needs for archives, in the versions of this installation.

Found by reading imports, from the handler on: an archive carries all of marship's decoders, and
needs those alone that its handler reaches.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from marship.deploying import imports
from marship.errors import UsageError
from marship.trust.archive import Archive

HOST = (
    *("cryptography", "httptools", "numpy", "onnxruntime", "orjson", "packaging", "psutil"),
    *("pyyaml", "requests", "rich", "typer", "uvloop"),
)
"""What `marship host` imports itself, beside the archive."""
_ONLY_TORCHSERVE = {"ts"}
_SHARED = 2
"""Packages from which on a module's name is a namespace, as `google` is."""
_GPU = {"onnxruntime": "onnxruntime-gpu"}


def pinned(archives: Iterable[Archive], *, gpu: bool, has_index: bool = False) -> list[str]:
    """Requirements with exact versions, those of requirements among them.

    Args:
        archives: What the image serves.
        gpu: Whether ONNX Runtime is the one for CUDA.
        has_index: Whether an index is named for what PyPI has not.

    Raises:
        UsageError: A package that an archive imports is not installed here, or came from elsewhere
            than PyPI.
    """
    wanted = set(HOST)
    for archive in archives:
        wanted |= {_package(archive, module) for module in sorted(imported(archive))}
    found: dict[str, str] = {}
    _add(wanted, found)
    for name, version in found.items():
        _check_origin(name, version, has_index=has_index)
    return sorted(
        f"{_GPU.get(name, name) if gpu else name}=={version}" for name, version in found.items()
    )


def imported(archive: Archive) -> set[str]:
    """Modules of others that an archive's handler imports, itself or by what it imports.

    Raises:
        UsageError: One of its files cannot be read.
    """
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
        for target, is_optional in _imports(archive, module, sources[module]):
            parts = target.split(".")
            above = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
            if own := [name for name in above if name in sources]:
                waiting += own
            elif not (is_optional and _owner(target) is None):
                others.add(_root(target))
    return others - sys.stdlib_module_names - _ONLY_TORCHSERVE - {"marship"}


def _imports(archive: Archive, module: str, source: bytes) -> list[tuple[str, bool]]:
    try:
        return list(imports.read(source))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{module} in {archive.name} must be Python whose imports can be read, got {error}. "
            "Package it again."
        ) from error


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The packages of each module; all that are installed are read for it."""
    return packages_distributions()


def _root(module: str) -> str:
    """The module that a package is found by: the first part, or more in a shared namespace."""
    parts = module.split(".")
    owners = set(_distributions().get(parts[0], ()))
    if len(owners) < _SHARED:
        return parts[0]
    for count in range(len(parts), 1, -1):
        found = ".".join(parts[:count])
        if any(_has(owner, found) for owner in owners):
            return found
    return parts[0]


def _owner(module: str) -> str | None:
    """The package that has a module; None if it is not installed."""
    root = _root(module)
    found = sorted(_distributions().get(root.partition(".")[0], ()))
    return next((owner for owner in found if _has(owner, root)), next(iter(found), None))


@cache
def _has(name: str, module: str) -> bool:
    """Whether a package has files of a module."""
    place = module.replace(".", "/")
    files = map(str, distribution(name).files or ())
    return any(file.startswith((f"{place}/", f"{place}.")) for file in files)


def _package(archive: Archive, module: str) -> str:
    found = _owner(module)
    if found is None:
        raise UsageError(
            f"{module}, which {archive.name} imports, must be installed here, since the image gets "
            "the same version, got none. Install it."
        )
    return canonicalize_name(found)


def _add(names: Iterable[str], found: dict[str, str]) -> None:
    """Add packages with what they require, by name."""
    waiting: list[tuple[str, str]] = [(name, "") for name in names]
    known: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in known:
            continue
        known.add((name, extra))
        try:
            item = distribution(name)
        except PackageNotFoundError as error:
            raise UsageError(
                f"{name} must be installed here, since the image gets the same version, got none. "
                "Install it."
            ) from error
        found[name] = item.version
        for one in map(Requirement, item.requires or ()):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(one.name), more) for more in ("", *one.extras)]


def _check_origin(name: str, version: str, *, has_index: bool) -> None:
    """Check that an index may have a package as it is installed here: else pip takes another one.

    Raises:
        UsageError: It has not: PyPI takes no local versions (PEP 440), and nobody can tell what a
            folder or a repository holds by its version alone.
    """
    told = json.loads(distribution(name).read_text("direct_url.json") or "{}")
    origin = told.get("url")
    if "dir_info" in told or "vcs_info" in told:
        raise UsageError(
            f"{name} must come from an index, since the image gets the same version, got {version} "
            f"from {origin}. Build its wheel, install that, and name the index that has it by "
            "--index"
        )
    if has_index or ("+" not in version and origin is None):
        return
    url = "https://download.pytorch.org/whl/cpu" if version.endswith("+cpu") else "URL"
    raise UsageError(
        f"{name} must come from an index, since the image gets the same version, got {version}"
        f"{f' from {origin}' if origin else ', which PyPI has not'}. Name the index that has it: "
        f"--index {url}"
    )
