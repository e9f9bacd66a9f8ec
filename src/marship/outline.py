"""What the Python files of an archive import, found without running them."""

import ast
import sys
from collections import deque
from collections.abc import Iterator, Mapping

Import = tuple[str, bool]  # a module, and whether it is imported as soon as the file is


def foreign(sources: Mapping[str, bytes], start: str) -> dict[str, bool]:
    """Modules of others that a file needs, and the archive's files that it imports.

    Args:
        sources: The archive's Python files by path.
        start: The path of the first one.

    Returns:
        The module's first name, and whether it is needed as soon as `start` is imported.

    Raises:
        SyntaxError: A file is not Python.
    """
    found: dict[str, bool] = {}
    seen: dict[str, bool] = {}
    waiting = deque([(start, True)])
    while waiting:
        path, always = waiting.popleft()
        if seen.get(path, False) or (path in seen and not always):
            continue
        seen[path] = always
        for module, at_once in _imports(sources[path]):
            needed = always and at_once
            own = _files(module, sources)
            waiting.extend((file, needed) for file in own)
            top = module.partition(".")[0]
            if not own and top not in sys.stdlib_module_names and not _files(top, sources):
                found[top] = found.get(top, False) or needed
    return found


def _files(module: str, sources: Mapping[str, bytes]) -> list[str]:
    """The archive's files that are run where a module is imported: its own, and its packages'."""
    parts = module.split(".")
    paths = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    places = [f"{path}/__init__.py" for path in paths] + [f"{paths[-1]}.py"]
    return [place for place in places if place in sources]


def _imports(source: bytes) -> Iterator[Import]:
    """Every import, and whether it stands where the file's first run comes past."""
    waiting: deque[tuple[ast.AST, bool]] = deque((node, True) for node in ast.parse(source).body)
    while waiting:
        node, at_once = waiting.popleft()
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, at_once
            yield from ((f"{node.module}.{alias.name}", at_once) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        else:
            inside = at_once and not isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try
            )
            waiting.extend((child, inside) for child in ast.iter_child_nodes(node))
