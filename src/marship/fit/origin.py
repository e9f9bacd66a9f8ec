"""Fingerprints of a result's inputs: a step is skipped while they are unchanged."""

import ast
import hashlib
import importlib.util
import json
import platform
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

FLAGS = ("flags", "Features")
"""Names of the CPU features in /proc/cpuinfo, on x86-64 and on Arm."""


def fingerprint(facts: Mapping[str, Any]) -> str:
    """SHA-256 over facts as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package."""
    return {name: metadata.version(name) for name in packages}


def machine() -> dict[str, Any]:
    """The CPU, its features and cores, on which timings and int8 kernels depend."""
    import psutil

    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    features = next((facts[name] for name in FLAGS if name in facts), "")
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "features": sorted(features.split()),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
    }


def local_files(*sources: Path) -> list[Path]:
    """Python files and all local modules that they import, directly or indirectly.

    Found by parsing import statements; nothing is run. Installed packages, the standard library
    and marship are identified by their versions instead.
    """
    found: dict[Path, None] = {}
    waiting = [source.resolve() for source in sources]
    folders = [*dict.fromkeys(str(source.parent) for source in waiting), *sys.path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found[file] = None
        waiting += [path for path in _imported(file, folders) if path not in found]
    return sorted(found)


def _imported(file: Path, folders: list[str]) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # running it reports the error
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name, folders)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield from _files_from(node, alias.name, file, folders)


def _files_from(node: ast.ImportFrom, name: str, file: Path, folders: list[str]) -> Iterator[Path]:
    """The files of `from module import name`: the module's, and the name's if it is a module."""
    dotted = ".".join(part for part in (node.module, name) if part)
    if node.level == 0:
        yield from _files(dotted, folders)
        return
    package = file.parents[node.level - 1]
    if (package / "__init__.py").is_file():
        yield package / "__init__.py"
    yield from _files(dotted, [str(package)], relative=True)


def _files(dotted: str, folders: list[str], *, relative: bool = False) -> Iterator[Path]:
    """The local files that importing a dotted name runs: the module's and its packages'."""
    path: list[str] | None = folders
    name = ""
    for part in dotted.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name if not relative else part, path)
        if spec is None and "." not in name and not relative:
            spec = _installed(name)
        if spec is None:
            return
        if spec.origin and spec.origin.endswith(".py") and _is_local(Path(spec.origin)):
            yield Path(spec.origin).resolve()
        path = list(spec.submodule_search_locations or ())
        if not path:
            return


def _installed(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _is_local(file: Path) -> bool:
    """Whether a module's file is local: not of a package, of Python or of marship."""
    kept = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places = [*(Path(place).resolve() for place in kept if place), Path(__file__).parents[1]]
    return not any(file.resolve().is_relative_to(place) for place in places)
