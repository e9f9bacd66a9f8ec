"""No code of ours reads a format that can hold code, or hands text to an interpreter."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("src", "handlers", "training", "benchmarks", "demos", "tools")
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
INTERPRETERS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
ERRORS_OF_PICKLE = {"pickle.UnpicklingError", "pickle.PickleError"}
OFF = {"allow_pickle": False, "shell": False, "trust_remote_code": False, "weights_only": True}


def files() -> list[str]:
    """Our Python files, without what benchmarks install for the peers."""
    found = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    names = [str(path.relative_to(REPOSITORY)) for path in found]
    return sorted(name for name in names if "/.venvs/" not in name)


def faults(source: str) -> Iterator[str]:
    """What a file does that it must not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names} - {"pickle"}
            yield from names & PICKLES  # pickle itself is looked at where it is used
        elif isinstance(node, ast.ImportFrom):
            yield from {str(node.module).partition(".")[0]} & PICKLES
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("pickle.") and name not in ERRORS_OF_PICKLE:
                yield name
        elif isinstance(node, ast.Call):
            yield from wrong_call(node)


def wrong_call(call: ast.Call) -> Iterator[str]:
    """What a call does that it must not."""
    name = ast.unparse(call.func)
    flags = {item.arg: item.value for item in call.keywords}
    if name in INTERPRETERS | SHELLS:
        yield name
    for flag, safe in OFF.items():
        value = flags.get(flag)
        if value is not None and not (isinstance(value, ast.Constant) and value.value is safe):
            yield f"{name}({flag}={ast.unparse(value)})"
    if name == "torch.load" and "weights_only" not in flags:
        yield "torch.load without weights_only"
    if name in {"torch.jit.load", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle"}:
        yield name
    if name.startswith("yaml.") and "load" in name and name != "yaml.safe_load":
        yield name


@pytest.mark.parametrize("name", files())
def test_nothing_reads_a_format_that_holds_code(name: str) -> None:
    """No pickle, no torch.load of objects, no unsafe YAML, no eval, no shell."""
    assert list(faults((REPOSITORY / name).read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
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
    ],
)
def test_each_of_them_would_be_found(source: str) -> None:
    """The look-out sees every kind."""
    assert list(faults(source))


def test_what_is_safe_is_left_alone() -> None:
    """A model's eval(), torch.load of weights and naming pickle's error are no fault."""
    source = "import pickle\nmodel.eval()\ntorch.load(path, weights_only=True)\nnp.load(path)"
    assert list(faults(f"{source}\nraise pickle.UnpicklingError")) == []


def test_files_are_found() -> None:
    """The look-out looks at the places where code lies."""
    found = files()
    assert {"src/marship/checkpoint.py", "handlers/onnx_handler.py"} <= set(found)
    assert any(name.startswith("training/") for name in found)
