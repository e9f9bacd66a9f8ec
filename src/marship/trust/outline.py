"""The definitions and imports of Python files, parsed in a process with limits, never run.

Python's parser is vulnerable to malicious source: a megabyte of it takes gigabytes, and deep
nesting has crashed the interpreter. So it runs in a process with limits of memory and time. This
file is also that process's script, and imports the standard library only.
"""

import ast
import json
import resource
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

MOST_BYTES = 64 << 20  # of all files of an archive
MOST_MEMORY_BYTES = 2 << 30
MOST_PROCESSOR_S = 60
MOST_NAME = 1024
MOST_IMPORTS = 20_000  # of one file

Import = tuple[str, bool]  # a module, and whether it is imported at module level


class SourceError(ValueError):
    """Source that cannot be parsed; the message says why."""


@dataclass(frozen=True, slots=True)
class Class:
    """A class: whether it is at module level, the names of its bases, and its methods."""

    name: str
    is_top: bool
    bases: tuple[str, ...]
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """A Python file, with the files of its archive that it imports.

    Attributes:
        classes: All classes, at any level.
        functions: Names of functions at module level.
        modules: Top-level names of third-party modules that it imports, and whether at module
            level.
    """

    classes: tuple[Class, ...]
    functions: tuple[str, ...]
    modules: Mapping[str, bool]


def outline(sources: Mapping[str, bytes], start: str) -> Outline:
    """Parse a Python file, and the archive's files that it imports.

    Args:
        sources: The archive's Python files by path.
        start: The path of the first one.

    Raises:
        SourceError: A file is not Python, or exceeds the limits of memory or time.
    """
    if (size_bytes := sum(map(len, sources.values()))) > MOST_BYTES:
        raise SourceError(f"{size_bytes:,} bytes of it, where {MOST_BYTES:,} are allowed")
    texts = {name: source.decode("latin-1") for name, source in sources.items()}
    done = subprocess.run(
        [sys.executable, "-I", __file__, start],
        input=json.dumps(texts).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:  # killed by a signal: timeout, or the interpreter crashed
        raise SourceError("some that takes too much memory or time")
    result = json.loads(done.stdout)
    if error := result.get("error"):
        raise SourceError(error)
    classes = (
        Class(kind["name"], kind["is_top"], tuple(kind["bases"]), tuple(kind["functions"]))
        for kind in result["classes"]
    )
    return Outline(tuple(classes), tuple(result["functions"]), result["modules"])


def main(start: str) -> None:
    """Entry point of the process: reads files from stdin, and writes the outline to stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_PROCESSOR_S, MOST_PROCESSOR_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    texts = json.load(sys.stdin.buffer)
    sources = {name: text.encode("latin-1") for name, text in texts.items()}
    try:
        tree = _parsed(start, sources[start])
        top = set(tree.body)
        classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
        found = Outline(
            tuple(_class(node, is_top=node in top) for node in classes),
            tuple(node.name for node in tree.body if isinstance(node, ast.FunctionDef)),
            _foreign(sources, start),
        )
        result = json.dumps(asdict(found))
    except SourceError as error:
        result = json.dumps({"error": str(error)})
    except (MemoryError, RecursionError):
        result = json.dumps({"error": "some that nests too deep, or takes too much memory"})
    sys.stdout.write(result)


def _parsed(path: str, source: bytes) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise SourceError(f"{error} in {path}") from error


def _class(node: ast.ClassDef, *, is_top: bool) -> Class:
    functions = (item.name for item in node.body if isinstance(item, ast.FunctionDef))
    return Class(node.name, is_top, tuple(map(ast.unparse, node.bases)), tuple(functions))


def _foreign(sources: Mapping[str, bytes], start: str) -> dict[str, bool]:
    """Third-party modules that a file imports, directly or through files of the archive."""
    found: dict[str, bool] = {}
    seen: dict[str, bool] = {}
    waiting = deque([(start, True)])
    while waiting:
        path, always = waiting.popleft()
        if seen.get(path, False) or (path in seen and not always):
            continue
        seen[path] = always
        for module, at_once in _imports(path, sources[path]):
            needed = always and at_once
            own = _files(module, sources)
            waiting.extend((file, needed) for file in own)
            top = module.partition(".")[0]
            if not own and top not in sys.stdlib_module_names and not _files(top, sources):
                found[top] = found.get(top, False) or needed
    return found


def _files(module: str, sources: Mapping[str, bytes]) -> list[str]:
    """The archive's files that are run when a module is imported: its own, and its packages'."""
    parts = module.split(".")
    paths = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    places = [f"{path}/__init__.py" for path in paths] + [f"{paths[-1]}.py"]
    return [place for place in places if place in sources]


def _imports(path: str, source: bytes) -> set[Import]:
    found: set[Import] = set()
    for one in _each_import(_parsed(path, source).body):
        if len(one[0]) > MOST_NAME:
            raise SourceError(f"a module's name of {len(one[0]):,} characters in {path}")
        found.add(one)
        if len(found) > MOST_IMPORTS:
            raise SourceError(f"more than {MOST_IMPORTS:,} imports in {path}")
    return found


def _each_import(body: list[ast.stmt]) -> Iterator[Import]:
    """Every import, and whether it runs when the file is imported."""
    waiting: deque[tuple[ast.AST, bool]] = deque((node, True) for node in body)
    while waiting:
        node, at_once = waiting.popleft()
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, at_once
            yield from ((f"{node.module}.{alias.name}", at_once) for alias in node.names)
        elif isinstance(node, ast.If) and _is_for_types(node.test):
            continue
        else:
            inside = at_once and not isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try
            )
            waiting.extend((child, inside) for child in ast.iter_child_nodes(node))


def _is_for_types(test: ast.expr) -> bool:
    """Whether a condition is TYPE_CHECKING."""
    return any(
        "TYPE_CHECKING" in (getattr(node, "id", None), getattr(node, "attr", None))
        for node in ast.walk(test)
    )


if __name__ == "__main__":
    main(sys.argv[1])
