"""Who may import whom: docs/design.md draws the rooms, this test keeps their doors."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "marship"
REPOSITORY = SOURCE.parents[1]

# The rooms of src/marship, and which others the code of each may import beside the ground.
GROUND = {"version", "errors", "contract", "texts", "storage"} | {
    *("console", "settings", "profiles", "unversioned", "arguments"),
}
ROOMS: dict[str, set[str]] = {
    # and no more of the ground: this travels in archives
    "serving": {"errors", "contract"},
    "trust": {"serving.model.sealed", "exchange"},
    "exchange": set(),
    "engines": {"exchange", "trust", "serving.hosts.direct"}
    | {"serving.model.keysource", "serving.model.heap", "serving.message"}
    | {"serving.sheet", "serving.metrics"}
    | {"serving.handler", "serving.hosts.torchserve.report"},  # ray's worker, in an archive's name
    "client": {"engines", "exchange", "serving.formats"},
    "predict": {"client", "engines", "exchange", "serving.formats"},
    "fit": set(),
    "proof": {"serving.formats", "serving.model.custom_ops"},  # reads example requests
    "pretrained": {"serving.formats", "serving.model", "serving.pictures", "serving.texts"},
    "exporting": {"fit", "pretrained", "proof"},
    "optimizing": {"fit", "proof"},
    "packaging": {"engines", "fit", "pretrained", "proof", "trust"}
    | {"serving.texts", "serving.formats", "serving.model.keysource", "serving.model.sealed"}
    | {"serving.model.custom_ops"}
    | {"serving.handler"},  # loading, in a process of its own
    "private": {"client", "fit", "packaging", "proof", "trust", "serving.private"}
    | {"serving.formats", "serving.model.dumps"},
    "deploying": {"trust"},
    "operate": {"serving.formats", "serving.model.keysource", "serving.openapi"}
    | {"serving.hosts.direct", "serving.message", "serving.model.sealed"}  # opens samples
    | {"serving.model.session", "serving.model.memory"}  # what the machine has
    | {"client", "engines", "exchange", "packaging", "predict", "trust"},
}
TOP = {"cli", "__main__", "__init__"}
WORKER_PACKAGES = {"numpy", "onnxruntime", "orjson", "marship"}
DECODERS = {
    "serving/formats/forms.py": {"backports"},  # zstd
    "serving/model/sealed.py": {"cryptography"},
    "serving/private/mpc/boxes.py": {"cryptography"},
    "serving/private/mpc/identity.py": {"cryptography"},
    "serving/private/mpc/streams.py": {"cryptography"},
    "serving/pictures/__init__.py": {"PIL"},
    "serving/pictures/jpeg.py": {"simplejpeg"},
    "serving/pictures/processor.py": {"PIL"},
    "serving/texts/__init__.py": {"tokenizers"},
    "serving/private/ckks.py": {"tenseal"},
    "serving/sounds/__init__.py": {"soundfile", "soxr"},
    "serving/hosts/direct/reader.py": {"httptools"},
    "serving/hosts/direct/relay.py": {"httptools"},
    "serving/hosts/direct/worker.py": {"uvloop"},
    "serving/hosts/direct/acceptor.py": {"uvloop"},
}
USES_TORCHSERVE = {
    "engines/default.py": "names the engine that all others get",
    "cli/server.py": "`serve` starts TorchServe: its settings are flags",
    "operate/doctor/torchserve.py": "looks for Java, and at the ports of the settings",
    "packaging/sbom/environment.py": "lists TorchServe's jar and the Java that would run it",
}
KNOWS_TORCHSERVE = {"serving/hosts/torchserve/wire.py", "serving/hosts/torchserve/worker.py"}


@cache
def files() -> list[str]:
    """All source files, as paths from src/marship."""
    return sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py"))


def module_of(name: str) -> str:
    """The module in a file of src/marship, without `marship.`."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, wherever in it the import stands."""
    return tuple(_imports(ast.parse(path.read_text())))


def _imports(tree: ast.AST) -> Iterator[str]:
    modules = {f"marship.{module_of(name)}" for name in files()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _is_import(node.func):
            given = node.args[0]
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                yield given.value
            elif isinstance(given, ast.JoinedStr) and isinstance(given.values[0], ast.Constant):
                yield str(given.values[0].value).rstrip(".")  # the package, at least
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def _is_import(function: ast.expr) -> bool:
    """Whether a function imports what its first argument names."""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def of_marship(name: str) -> list[str]:
    """The modules of marship that a source file imports, without `marship.`."""
    return [m.removeprefix("marship.") for m in imports(SOURCE / name) if m.startswith("marship.")]


def packages(path: Path) -> set[str]:
    """The packages that a file imports."""
    return {module.split(".")[0] for module in imports(path)}


def room(module: str) -> str:
    """The room of a module."""
    return module.split(".", maxsplit=1)[0]


def may_import(own: str, target: str) -> bool:
    """Whether code of a room may import a module of marship."""
    if own in TOP or room(target) == own:
        return True
    if own in GROUND:
        return room(target) in GROUND
    allowed = ROOMS[own] if own == "serving" else ROOMS[own] | GROUND
    return any(one in (target, room(target)) or target.startswith(f"{one}.") for one in allowed)


def test_a_room_imports_only_what_its_place_allows() -> None:
    """Every import of marship inside marship goes to a room that ROOMS names, or to the ground."""
    wrong = [
        f"{name} imports {target}"
        for name in files()
        for target in of_marship(name)
        if not may_import(room(module_of(name)), target)
    ]
    assert not wrong


SERVING = (
    ("message", "sheet", "metrics"),
    ("formats",),
    ("model", "pictures", "sounds", "speech", "texts", "openapi"),
    ("placement",),
    ("service", "earlier"),
    ("hosts.direct",),
    ("hosts.torchserve",),
    ("hosts",),
    ("handler",),  # loads hosts for handlers of one's own: see docs/decisions.md
    ("streaming", "private"),
)
"""What travels in archives, from the ground up; each may import what stands before it, and its own
floor."""


def _floor(module: str) -> int:
    inner = module.removeprefix("serving.")
    floors = [
        (len(part), number)
        for number, parts in enumerate(SERVING)
        for part in parts
        if inner == part or inner.startswith(f"{part}.")
    ]
    assert floors, f"{module} must have a floor"
    return max(floors)[1]


def test_serving_climbs_no_floor_of_its_own() -> None:
    """From hosts down to the message."""
    wrong = [
        f"{name} imports {target}"
        for name in files()
        if name.startswith("serving/") and name != "serving/__init__.py"
        for target in of_marship(name)
        if target.startswith("serving.")
        if _floor(target) > _floor(module_of(name))
    ]
    assert not wrong


def test_imports_are_absolute() -> None:
    """A relative one names no room."""
    assert not [
        f"{path}:{node.lineno}"
        for path in written()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("import ts.context", "ts.context"),
        ("from marship.serving import handler", "marship.serving.handler"),
        ("def f():\n    from marship.errors import UsageError", "marship.errors"),
        ("importlib.import_module('marship.engines.engine')", "marship.engines.engine"),
        ("import_module(f'marship.optimizing.passes.{name}')", "marship.optimizing.passes"),
        ("__import__('ts.context')", "ts.context"),
    ],
)
def test_every_form_of_import_is_seen(line: str, module: str) -> None:
    """Also inside functions, and by functions."""
    assert list(_imports(ast.parse(line))) == [module]


def test_only_named_files_use_torchserves_engine() -> None:
    """All others use the interface of engines, so that another engine may take its place."""
    users = {
        name
        for name in files()
        if not name.startswith("engines/torchserve/")
        and any(f"{target}.".startswith("engines.torchserve.") for target in of_marship(name))
    }
    assert users == set(USES_TORCHSERVE)


def test_the_page_on_design_draws_the_rooms_as_they_are() -> None:
    """At most 28 on 10 floors, no circle; `python tools/rooms.py` draws them."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tools" / "rooms.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    head, _, drawing = done.stdout.partition("\n")
    rooms, floors = (int(found) for found in re.findall(r"(\d+) (?:rooms|floors)", head))
    assert rooms <= 28
    assert floors <= 10
    page = " ".join((REPOSITORY / "docs" / "design.md").read_text().split())
    assert f"({head})" in page
    assert " ".join(drawing.split()) in page


def written() -> list[Path]:
    """All files of src/marship, handlers/ and training/."""
    folders = (SOURCE, REPOSITORY / "handlers", REPOSITORY / "training")
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def test_files_stay_under_400_lines() -> None:
    """What docs/design.md says of the length of files."""
    assert len(written()) > 200
    assert not [path for path in written() if len(path.read_text().splitlines()) >= 400]


def test_functions_stay_under_61_lines() -> None:
    """From the line of `def`, docstring and all, as docs/design.md says."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in written()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
    }
    assert len(found) > 1000
    assert not {name: lines for name, lines in found.items() if lines > 60}


def test_a_class_has_a_name_of_its_own() -> None:
    """No two modules define a public class of one name."""
    found = Counter(
        node.name
        for name in files()
        for node in ast.parse((SOURCE / name).read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert len(found) > 200
    assert [name for name, times in found.items() if times > 1] == []


def test_the_map_names_files_that_are_there() -> None:
    """Whatever docs/design.md says where something is."""
    page = (REPOSITORY / "docs" / "design.md").read_text()
    table = page[page.index("## Where is what") : page.index("## Public and internal")]
    found = re.findall(r"`([a-z_0-9/]+(?:/|\.py))`", table)
    assert len(found) > 10
    beside = SOURCE / "serving" / "pictures"
    assert not [n for n in found if not (SOURCE / n).exists() and not (beside / n).exists()]


def test_what_travels_needs_three_packages() -> None:
    """The copy in an archive imports the standard library, numpy, onnxruntime and orjson.

    Some files decode pictures, sounds or sealed models, with what only such a worker needs.
    """
    for name in files():
        if room(module_of(name)) in ("serving", "contract", "errors"):
            knows = {"ts"} if name in KNOWS_TORCHSERVE else DECODERS.get(name, set())
            assert packages(SOURCE / name) <= WORKER_PACKAGES | knows | sys.stdlib_module_names, (
                name
            )


def test_few_files_know_torchserves_python() -> None:
    """Nothing but the handler and what hosts it in TorchServe imports `ts`."""
    script = "engines/torchserve/worker_script.py"  # starts a worker in place of TorchServe's own
    knowing = {name for name in files() if "ts" in packages(SOURCE / name)}
    assert knowing == KNOWS_TORCHSERVE | {script}


def test_only_its_own_folder_of_serving_knows_torchserve() -> None:
    """No other file of serving names it, its settings or the form of its metrics."""
    known = re.compile(
        r"torchserve|responsetimeout|maxworkers|minworkers|\[metrics\]|log_location|ts_config_file"
        r"|job_queue_size|default_workers_per_model|model_store_dir",
        re.IGNORECASE,
    )
    own = ("serving/hosts/torchserve/", "serving/hosts/__init__.py", "serving/earlier.py")
    for name in files():
        if name.startswith("serving/") and not name.startswith(own):
            assert not known.search((SOURCE / name).read_text()), name


def test_exchange_knows_no_engine() -> None:
    """Neither TorchServe's name nor its types and messages of errors, nor its settings."""
    known = re.compile(
        r"(?i:torchserve)|Exception[\"']|Worker (died|scaled)|responseTimeout|modelUrl"
    )
    named = {name for name in files() if room(module_of(name)) == "exchange"}
    assert len(named) > 5
    assert not [name for name in named if known.search((SOURCE / name).read_text())]


@pytest.mark.parametrize("folder", ["handlers", "training"])
def test_nothing_imports_the_readers_code(folder: str) -> None:
    """handlers/ and training/ are files that people copy, never modules that marship imports."""
    stems = {path.stem for path in (REPOSITORY / folder).glob("*.py")}
    assert not [name for name in files() if stems & packages(SOURCE / name)]


def test_handlers_import_only_what_travels() -> None:
    """A handler uses the parts that its archive carries, and no other part of marship."""
    for path in (REPOSITORY / "handlers").glob("*.py"):
        own = [m.removeprefix("marship.") for m in imports(path) if m.startswith("marship.")]
        assert {room(module) for module in own} <= {"errors", "contract", "serving"}, path


HEAVY = {"torch", "onnx", "onnxruntime", "matplotlib", "accelerate", "aiohttp"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    {
        "marship": HEAVY | {"numpy"},
        "marship.cli": HEAVY | {"numpy"},
        "marship.client": HEAVY,
        "marship.cli.tables": HEAVY | {"numpy"},
        "marship.predict": HEAVY,
    }.items(),
)
def test_importing_is_cheap(module: str, heavy: set[str]) -> None:
    """Neither the package nor the command line loads a library before something needs it."""
    code = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
