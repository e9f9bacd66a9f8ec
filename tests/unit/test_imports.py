"""Who may import whom: docs/design.md draws the house, this test keeps its doors."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "marship"
REPOSITORY = SOURCE.parents[1]

# Each part of marship, and the parts it may import.
BASE = {"errors"}
FILES = BASE | {"contract", "limited", "storage", "settings", "console", "texts", "unversioned"}
MODELS = FILES | {"recipe", "graph", "cases", "comparison", "golden", "parity"}
ALLOWED: dict[str, set[str]] = {
    "__init__": {"client"},
    "errors": set(),
    "contract": BASE,
    "limited": set(),
    "unversioned": BASE | {"storage"},
    "storage": BASE | {"texts"},
    "settings": BASE | {"storage"},
    "console": BASE,
    "shipped": BASE,
    "profiles": BASE,
    "texts": BASE,
    "outline": set(),
    "recipe": BASE,
    "serving": BASE | {"contract"},
    "operators": FILES,
    "columns": set(),
    "indices": FILES | {"columns", "operators"},
    "graph": FILES | {"indices", "operators"},
    "cases": FILES | {"graph"},
    "comparison": FILES,
    "golden": FILES | {"cases", "graph", "rowsets"},
    "evidence": BASE,
    "rounding": FILES,
    "rowsets": FILES | {"cases"},
    "rows": FILES | {"cases", "comparison", "operators", "profiles", "rounding", "rowsets"},
    "parity": FILES | {"cases", "comparison", "golden", "graph", "rows"},
    "onnx_proof": FILES | {"graph", "parity", "sizes"},
    "checkpoint": FILES,
    "run": FILES | {"recipe"},
    "fit": FILES | {"checkpoint", "run"},
    "layout": FILES | {"recipe"},
    "guards": FILES | {"layout"},
    "size_floats": FILES | {"guards", "layout"},
    "capture": FILES | {"comparison", "guards", "layout", "parity", "size_floats"},
    "build": FILES | {"checkpoint", "recipe"},
    "outputs": FILES,
    "origin": BASE,
    "sizes": FILES | {"cases"},
    "compare": MODELS | {"guards", "layout", "sizes"},
    "export": MODELS | {"build", "capture", "compare", "guards", "layout", "origin", "outputs"},
    "optimize": MODELS | {"origin"},
    "archive": BASE | {"contract", "outline", "serving.sealed", "texts", "trust"},
    "configure": FILES | {"archive", "trust"},
    "sealing": FILES | {"archive", "serving.keysource", "serving.sealed", "trust"},
    "package": MODELS
    | {"archive", "configure", "console", "evidence", "onnx_proof", "outline", "profiles", "run"}
    | {"sealing", "shipped", "serving.extent", "serving.keysource"},
    "sbom": FILES | {"archive", "outline", "torchserve"},
    "trust": FILES,
    "torchserve": FILES | {"archive", "shipped", "trust"},
    "server": FILES | {"serving.keysource", "torchserve"},
    "certificate": FILES,
    "proxy": FILES | {"certificate", "torchserve"},
    "bodies": BASE | {"torchserve", "serving.codec"},
    "client": FILES | {"bodies", "profiles", "torchserve"},
    "predict": FILES | {"client", "torchserve", "serving.codec"},
    "replay": FILES | {"archive", "client", "outline"},
    "rollout": FILES | {"archive", "client", "predict.sources", "replay", "torchserve"},
    "statefile": FILES | {"profiles"},
    "state": FILES | {"client", "profiles", "replay", "rollout", "statefile", "torchserve"},
}
TOP = {"cli", "tables", "__main__"}
WORKER_PACKAGES = {"numpy", "onnxruntime", "orjson", "marship"}
DECODERS = {
    "serving/sealed.py": {"cryptography"},
    "serving/pictures.py": {"PIL"},
    "serving/jpeg.py": {"simplejpeg"},
    "serving/sounds.py": {"soundfile", "soxr"},
}
KNOWS_TORCHSERVE = {"serving/handler.py", "serving/transport.py", "serving/worker.py"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("marship", "marship.serving"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def files() -> list[str]:
    """All source files, as paths from src/marship."""
    return sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py"))


def part(name: str) -> str:
    """The part a file belongs to: its subpackage, or its own name."""
    return name.split("/", maxsplit=1)[0].removesuffix(".py")


def may_import(allowed: set[str], target: str) -> bool:
    """Whether a module, or the package it lies in, is among the allowed parts."""
    return any(target == part or target.startswith(f"{part}.") for part in allowed)


@pytest.mark.parametrize("name", files())
def test_a_part_imports_only_what_its_place_allows(name: str) -> None:
    """Every import of marship inside marship goes to a part that ALLOWED names for it."""
    own = part(name)
    if own in TOP:
        return
    wrong = []
    for module in imports(SOURCE / name):
        if not module.startswith("marship."):
            continue
        target = module.removeprefix("marship.")
        if target.split(".")[0] != own and not may_import(ALLOWED[own], target):
            wrong.append(module)
    assert not wrong


@pytest.mark.parametrize(
    "name", [n for n in files() if part(n) in ("serving", "contract", "errors")]
)
def test_what_travels_needs_three_packages(name: str) -> None:
    """The copy in an archive imports the standard library, numpy, onnxruntime and orjson.

    Some files decode pictures, sounds or sealed models, with what only such a worker needs.
    """
    tops = {module.split(".")[0] for module in imports(SOURCE / name)}
    knows = {"ts"} if name in KNOWS_TORCHSERVE else DECODERS.get(name, set())
    assert tops <= WORKER_PACKAGES | knows | sys.stdlib_module_names


@pytest.mark.parametrize("name", files())
def test_only_two_files_know_torchserves_python(name: str) -> None:
    """Nothing but the handler and the transport imports `ts`."""
    if name not in KNOWS_TORCHSERVE:
        assert "ts" not in {module.split(".")[0] for module in imports(SOURCE / name)}


@pytest.mark.parametrize("folder", ["handlers", "training"])
def test_nothing_imports_the_readers_code(folder: str) -> None:
    """handlers/ and training/ are files that people copy, never modules that marship imports."""
    stems = {path.stem for path in (REPOSITORY / folder).glob("*.py")}
    for name in files():
        assert not stems & {module.split(".")[0] for module in imports(SOURCE / name)}


def test_handlers_import_only_what_travels() -> None:
    """A handler uses the parts that its archive carries, and no other part of marship."""
    for path in (REPOSITORY / "handlers").glob("*.py"):
        for module in imports(path):
            if module.startswith("marship"):
                assert part(module.removeprefix("marship.").replace(".", "/")) in {
                    "errors",
                    "contract",
                    "serving",
                }, path


@pytest.mark.parametrize("module", ["marship", "marship.cli"])
def test_importing_is_cheap(module: str) -> None:
    """Neither the package nor the command line loads a heavy library by itself."""
    heavy = "{'torch', 'onnx', 'onnxruntime', 'matplotlib', 'accelerate'}"
    code = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
