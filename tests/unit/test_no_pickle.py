"""No code of ours reads a format that can hold code, or hands text to an interpreter."""

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("src", "handlers", "training", "benchmarks", "demos", "tools")
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
REFUSED = {
    *PICKLES,
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("torch.jit.load", "torch.hub.load", "torch.export.load", "torch.package"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all"),
    *("yaml.unsafe_load", "yaml.unsafe_load_all", "pandas.read_pickle"),
}
"""Names that nothing may use, and all that lies below them."""
TRUSTED = {"src/marship/exporting/modules.py": {"torch.jit.load", "torch.export.load"}}
"""Files that open what a user has said to trust, in a process of its own, and what they use."""
HARMLESS = {"pickle.UnpicklingError", "pickle.PickleError"}
LOADS = {"torch.load", "torch.serialization.load"}
PLACES = {"numpy.load": 2, "numpy.lib.format.read_array": 1}
"""Which argument without a name is `allow_pickle`."""
OFF = {"allow_pickle": False, "shell": False, "trust_remote_code": False, "weights_only": True}


def files() -> list[str]:
    """Our Python files, without what benchmarks install for the peers."""
    found = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    names = [str(path.relative_to(REPOSITORY)) for path in found]
    return sorted(name for name in names if "/.venvs/" not in name)


def faults(source: str) -> Iterator[str]:
    """What a file does that it must not."""
    nodes = list(ast.walk(ast.parse(source)))
    meant = imported(nodes)
    yield from filter(is_refused, set(meant.values()) - {"pickle"})  # its errors may be named
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
            name = in_full(node, meant)
            if is_refused(name) or (name in LOADS and id(node) not in called):
                yield name
        elif isinstance(node, ast.Call):
            yield from wrong_call(node, in_full(node.func, meant))


def imported(nodes: list[ast.AST]) -> dict[str, str]:
    """What each name that is imported means, in full."""
    meant = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                meant[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            meant |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return meant


def in_full(node: ast.expr, meant: dict[str, str]) -> str:
    """A dotted name as it would be without `from` and `as`."""
    head, dot, rest = ast.unparse(node).partition(".")
    return (meant.get(head, head) + dot + rest).removeprefix("builtins.")


def is_refused(name: str) -> bool:
    """Whether it, or what it lies in, is one that nothing may use."""
    parts = name.removeprefix("builtins.").split(".")
    above = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return name not in HARMLESS and bool(above & REFUSED)


def wrong_call(call: ast.Call, name: str) -> Iterator[str]:
    """What a call does that it must not."""
    flags = {item.arg: item.value for item in call.keywords}
    for flag, safe in OFF.items():
        value = flags.get(flag)
        if value is not None and not (isinstance(value, ast.Constant) and value.value is safe):
            yield f"{name}({flag}={ast.unparse(value)})"
    if name in LOADS and "weights_only" not in flags:
        yield f"{name} without weights_only"
    is_open = None in flags or any(isinstance(one, ast.Starred) for one in call.args)
    if name in PLACES and (is_open or len(call.args) > PLACES[name]):
        yield f"{name} with what may be allow_pickle"
    if name == "importlib.import_module":
        given = call.args[0] if call.args else None
        if isinstance(given, ast.Constant) and is_refused(str(given.value)):
            yield f"{name}({given.value!r})"


def test_nothing_reads_a_format_that_holds_code() -> None:
    """No pickle, no torch.load of objects, no unsafe YAML, no eval, no shell."""
    found = {name: set(faults((REPOSITORY / name).read_text())) for name in files()}
    assert {name: faulty for name, faulty in found.items() if faulty} == TRUSTED


UNSAFE = [
    "import dill",
    "import pickle\npickle.loads(data)",
    "from pickle import loads",
    "from joblib import load",
    "import shelve",
    "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=chosen)",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "torch.hub.load(a, b)",
    "AutoModel.from_pretrained(name, trust_remote_code=True)",
    "yaml.load(text)",
    "yaml.load(text, Loader=yaml.Loader)",
    "yaml.unsafe_load(text)",
    "eval(text)",
    "exec(text)",
    "subprocess.run(text, shell=True)",
    "os.system(text)",
    "import pickle as p\np.loads(data)",
    "import pickle\np = pickle",
    "import pickle\ngetattr(pickle, name)(data)",
    "from pickle import Unpickler as Reader",
    "import importlib\nimportlib.import_module('pickle').loads(data)",
    "from importlib import import_module\nimport_module('dill')",
    "from torch import load\nload(path)",
    "import torch as t\nt.load(path)",
    "import torch\nload = torch.load",
    "torch.load(path, **settings)",
    "torch.serialization.load(path)",
    "torch.export.load(path)",
    "from torch.jit import load",
    "from os import system\nsystem(text)",
    "from subprocess import getoutput\ngetoutput(text)",
    "from subprocess import run\nrun(text, shell=1)",
    "from yaml import load\nload(text)",
    "import yaml as y\ny.full_load(text)",
    "import numpy as np\nnp.load(path, None, True)",
    "import numpy as np\nnp.load(path, **settings)",
    "from numpy import load\nload(*given)",
    "from numpy.lib import format\nformat.read_array(file, True)",
    "import pandas as p\np.read_pickle(path)",
    "import builtins\nbuiltins.exec(text)",
    "from builtins import eval as read\nread(text)",
    "read = eval",
]


def test_each_of_them_would_be_found() -> None:
    """The search sees every kind."""
    assert [source for source in UNSAFE if not list(faults(source))] == []


def test_what_is_safe_is_left_alone() -> None:
    """A model's eval(), torch.load of weights and naming pickle's error are no fault."""
    source = """
import importlib, pickle, re, yaml
import numpy as np
from pickle import PickleError
from torch import load
model.eval()
load(path, weights_only=True)
np.load(path, "r")
re.compile(text)
yaml.safe_load(text)
importlib.import_module(name)
raise pickle.UnpicklingError
"""
    assert list(faults(source)) == []


def test_files_are_found() -> None:
    """The look-out looks at the places where code lies."""
    found = files()
    assert {"src/marship/fit/checkpoint.py", "handlers/onnx_handler.py"} <= set(found)
    assert any(name.startswith("training/") for name in found)
