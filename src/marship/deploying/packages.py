"""Which Python packages a host needs for archives, in the versions of this installation.

Found by reading imports, from the handler on: an archive carries all of marship's decoders, and
needs those alone that its handler reaches.
"""

import ast
import json
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
_SHARED = 2
"""Packages from which on a module's name is a namespace, as `google` is."""
_ABSENCES = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_MACHINE = {("sys", "platform"), ("sys", "version_info"), ("os", "name")} | {
    ("platform", name) for name in ("system", "machine", "python_implementation")
}
"""What a file asks before it imports what is for some machines or versions of Python."""
_MAIN = {
    ast.dump(ast.parse(text, mode="eval").body)
    for text in ("__name__ == '__main__'", "'__main__' == __name__")
}
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
    if not has_index:
        for name, version in found.items():
            _check_public(name, version)
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
        for target, is_optional in _imports(sources[module]):
            parts = target.split(".")
            above = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
            if own := [name for name in above if name in sources]:
                waiting += own
            elif not (is_optional and _owner(target) is None):
                others.add(_root(target))
    return others - sys.stdlib_module_names - _ONLY_TORCHSERVE - {"marship"}


def _imports(source: bytes) -> Iterator[tuple[str, bool]]:
    """What a file imports, wherever that stands, and whether the file can do without."""
    tree = ast.parse(source)
    sought = set(_sought(tree))
    for node, is_optional in _statements(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, is_optional or name.partition(".")[0] in sought) for name in names)


def _sought(tree: ast.AST) -> Iterator[str]:
    """Modules that a file looks for before it imports them: `find_spec("NAME")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _named(node.func) == "find_spec" and node.args:
            given = node.args[0]
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                yield given.value.partition(".")[0]


def _statements(
    node: ast.AST, *, is_optional: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The imports in a part of a file, but those for type checkers and for who runs it itself."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, is_optional
        return
    is_never = isinstance(node, ast.If) and _is_never(node.test)
    is_optional = is_optional or _bears_absence(node)
    for child in node.orelse if is_never else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        yield from _statements(child, is_optional=is_optional)


def _is_never(test: ast.expr) -> bool:
    """Whether a condition is of type checkers, or of `python FILE`."""
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq):
        return ast.dump(test) in _MAIN
    return _named(test) == "TYPE_CHECKING"


def _bears_absence(node: ast.AST) -> bool:
    """Whether a statement goes on where an import in it fails, or is not for every machine."""
    if isinstance(node, ast.If):
        return any(
            isinstance(part, ast.Attribute) and (_named(part.value), part.attr) in _MACHINE
            for part in ast.walk(node.test)
        )
    if isinstance(node, ast.Try):
        return any(
            bool(_caught(handler.type) & _ABSENCES)
            and not any(isinstance(part, ast.Raise) for part in ast.walk(handler))
            for handler in node.handlers
        )
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items]
        return any(
            isinstance(call, ast.Call)
            and _named(call.func) == "suppress"
            and any(_caught(given) & _ABSENCES for given in call.args)
            for call in calls
        )
    return False


def _caught(kind: ast.expr | None) -> set[str | None]:
    """The names of the exceptions that are caught; all where none is named."""
    if kind is None:
        return {"Exception"}
    return {_named(one) for one in (kind.elts if isinstance(kind, ast.Tuple) else [kind])}


def _named(node: ast.expr) -> str | None:
    """What `NAME` and `module.NAME` name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


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


def _check_public(name: str, version: str) -> None:
    """Check that PyPI may have a package as it is installed here: else pip would take another one.

    Raises:
        UsageError: It has not.
    """
    origin = json.loads(distribution(name).read_text("direct_url.json") or "{}").get("url")
    if "+" not in version and origin is None:  # PyPI takes no local versions (PEP 440)
        return
    url = "https://download.pytorch.org/whl/cpu" if version.endswith("+cpu") else "URL"
    raise UsageError(
        f"{name} must come from an index, since the image gets the same version, got {version}"
        f"{f' from {origin}' if origin else ', which PyPI has not'}. Name the index that has it: "
        f"--index {url}"
    )
