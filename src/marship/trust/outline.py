"""What Python files define and import, found without running them, by a process with limits.

Python's own parser is no match for hostile source: a megabyte of it takes gigabytes, and deep
nesting has ended whole interpreters. So it runs in a process that may use so much memory and time
and no more. This file is that process's program as well, and imports the standard library alone.
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

Import = tuple[str, bool]  # a module, and whether it is imported as soon as the file is


class SourceError(ValueError):
    """Source that cannot be parsed; the message says why."""


@dataclass(frozen=True, slots=True)
class Class:
    """A class: whether it stands at the file's top, its bases by name, and its own functions."""

    name: str
    is_top: bool
    bases: tuple[str, ...]
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """A file of Python, and those of its archive that it imports.

    Attributes:
        classes: Wherever they stand.
        functions: At its top, by name.
        modules: Modules of others that it needs, by their first name, and whether they are
            needed as soon as the file is imported.
    """

    classes: tuple[Class, ...]
    functions: tuple[str, ...]
    modules: Mapping[str, bool]


def outline(sources: Mapping[str, bytes], start: str) -> Outline:
    """Read a Python file, and the archive's files that it imports.

    Args:
        sources: The archive's Python files by path.
        start: The path of the first one.

    Raises:
        SourceError: A file is not Python, or takes more memory or time than it may.
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
    if done.returncode != 0:  # by a signal: too long, or the interpreter crashed
        raise SourceError("some that takes too much memory or time")
    told = json.loads(done.stdout)
    if error := told.get("error"):
        raise SourceError(error)
    classes = (
        Class(kind["name"], kind["is_top"], tuple(kind["bases"]), tuple(kind["functions"]))
        for kind in told["classes"]
    )
    return Outline(tuple(classes), tuple(told["functions"]), told["modules"])


def main(start: str) -> None:
    """The process: files come on its standard input, the outline goes to its standard output."""
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
        told = json.dumps(asdict(found))
    except SourceError as error:
        told = json.dumps({"error": str(error)})
    except (MemoryError, RecursionError):
        told = json.dumps({"error": "some that nests too deep, or takes too much memory"})
    sys.stdout.write(told)


def _parsed(path: str, source: bytes) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise SourceError(f"{error} in {path}") from error


def _class(node: ast.ClassDef, *, is_top: bool) -> Class:
    functions = (item.name for item in node.body if isinstance(item, ast.FunctionDef))
    return Class(node.name, is_top, tuple(map(ast.unparse, node.bases)), tuple(functions))


def _foreign(sources: Mapping[str, bytes], start: str) -> dict[str, bool]:
    """Modules of others that a file needs, itself or by the archive's files that it imports."""
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
    """The archive's files that are run where a module is imported: its own, and its packages'."""
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
    """Every import, and whether it stands where the file's first run comes past."""
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
    """Whether a condition asks for TYPE_CHECKING."""
    return any(
        "TYPE_CHECKING" in (getattr(node, "id", None), getattr(node, "attr", None))
        for node in ast.walk(test)
    )


if __name__ == "__main__":
    main(sys.argv[1])
