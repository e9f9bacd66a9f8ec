"""A new folder with a recipe and a handler of one's own: copies of marship's, a test and a README.

Recipes and handlers come from where marship is installed: a checkout, or the wheel, which has both.
"""

import ast
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marship import storage
from marship.errors import UsageError
from marship.packaging.mar import NAME
from marship.packaging.shipped import HANDLERS

RECIPES = Path(__file__).parents[1] / "training"
_TEMPLATES = Path(__file__).with_name("starters")
_IGNORED = "/data/\n/runs/\n/model_store/\n/.marship/\n__pycache__/\n"


@dataclass(frozen=True, slots=True)
class Starter:
    """What a folder is begun from.

    Attributes:
        handler: The file in handlers/.
        recipe: The file in training/; None where the model comes as an ONNX file.
        train: The command that makes the model, behind `python`.
        source: What is packed; NAME stands for the model's name.
        data: What the README says of the data.
        request: An example of a request, as `marship predict` takes it.
    """

    handler: str
    recipe: str | None
    train: str
    source: str
    data: str
    request: str


STARTERS = {
    "regression": Starter(
        "onnx_handler.py",
        "regression.py",
        "training/regression.py",
        "runs/NAME",
        "The data are scikit-learn's diabetes data, until you load your own in "
        "`training/regression.py`.",
        "--json '[[50, 1, 27, 95, 190, 115, 50, 4, 4.6, 91]]'",
    ),
    "image": Starter(
        "image_handler.py",
        "image.py",
        "training/image.py --data-dir data",
        "runs/NAME",
        "Put pictures into `data/train/<class>/` and `data/test/<class>/`.",
        "photo.jpg",
    ),
    "speech": Starter(
        "speech_handler.py",
        "speech.py",
        "training/speech.py --data-dir data",
        "runs/NAME",
        "Put recordings into `data/train/` and `data/test/`, each with a table `metadata.csv` with "
        "the columns `file_name` and `transcription`.",
        "talk.wav",
    ),
    "recommend": Starter(
        "recommend_handler.py",
        "recommend.py",
        "training/recommend.py",
        "runs/NAME",
        "Without `--data-dir` MovieLens-100k is fetched; for your own data, rewrite "
        "`training/movielens.py`.",
        """--json '{"history": [50, 172, 1], "k": 3}'""",
    ),
    "onnx": Starter(
        "onnx_handler.py",
        None,
        "make_model.py",
        "model.onnx",
        "`make_model.py` writes a small `model.onnx`; put your own in its place.",
        """--json '{"input": [[1, 2, 3]]}'""",
    ),
}


def new(folder: Path, kind: str) -> list[Path]:
    """Begin a folder.

    Args:
        folder: Where: empty, or not there yet. The model gets its name.
        kind: One of `STARTERS`.

    Returns:
        The files that were written.

    Raises:
        UsageError: The kind is unknown, the name cannot be a model's, or the folder is not empty.
        StorageError: It cannot be written to.

    Example:
        >>> [path.name for path in new(Path("churn"), "onnx")][:2]
        ['.gitignore', 'README.md']
    """
    if kind not in STARTERS:
        raise UsageError(f"--from must be one of {', '.join(STARTERS)}, got {kind!r}.")
    name = folder.absolute().name
    if not NAME.fullmatch(name):
        raise UsageError(
            "the folder's name becomes the model's and must be letters, digits, dots, dashes and "
            f"underscores, got {name!r}. Choose another."
        )
    with storage.explained(folder):
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} must be empty or not there yet, got files. Name another.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        texts = dict(sorted(_texts(name, kind)))
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.draft-") as draft:
            whole = Path(draft, name)  # within the draft, whose permissions are its owner's alone
            for path, text in texts.items():
                (whole / path).parent.mkdir(parents=True, exist_ok=True)
                (whole / path).write_text(text)
            whole.rename(folder)
    return [folder / path for path in texts]


def _texts(name: str, kind: str) -> Iterator[tuple[str, str]]:
    """Each file's path and text."""
    starter = STARTERS[kind]
    yield ".gitignore", _IGNORED
    yield f"handlers/{starter.handler}", (HANDLERS / starter.handler).read_text()
    yield "tests/test_model.py", (_TEMPLATES / f"test_{kind}.txt").read_text()
    yield "README.md", _readme(name, starter)
    if starter.recipe is None:
        yield "make_model.py", (_TEMPLATES / "make_model.txt").read_text()
        yield "package.toml", f'name = "{name}"\nhandler = "handlers/{starter.handler}"\n'
        return
    for path in _with_imports(RECIPES / starter.recipe):
        text = path.read_text()
        own = _named(text, name, starter) if path.name == starter.recipe else text
        yield f"training/{path.name}", own


def _with_imports(recipe: Path) -> list[Path]:
    """A recipe, and the files beside it that it imports, or those do."""
    found, left = {recipe}, [recipe]
    while left:
        for node in ast.walk(ast.parse(left.pop().read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            beside = {RECIPES / f"{name}.py" for name in names} - found
            fresh = [path for path in beside if path.is_file()]
            found.update(fresh)
            left += fresh
    return sorted(found)


def _named(text: str, name: str, starter: Starter) -> str:
    """A recipe's text for another model, with the handler that stands beside it.

    Raises:
        RuntimeError: The text has another form, which is a mistake of ours.
    """
    stem = Path(starter.recipe or "").stem
    handler = f'handler="handlers/{starter.handler}",'
    text = re.sub(r"\n +handler=.*", "", text)
    for pattern, instead in (
        (rf'Path\("runs/{stem}"\)', f'Path("runs/{name}")'),
        (rf'name="{stem}",(\n +)', rf'name="{name}",\1{handler}\1'),
    ):
        text, count = re.subn(pattern, instead, text)
        if count != 1:
            raise RuntimeError(f"{starter.recipe} must hold {pattern} once, got it {count} times.")
    return text


def _readme(name: str, starter: Starter) -> str:
    """The template, with what differs."""
    source = starter.source.replace("NAME", name)
    text = (_TEMPLATES / "README.txt").read_text()
    steps = [f"python {starter.train}"]
    if starter.recipe is None:
        package = f"{source} --settings package.toml"
        reload = f"{source} --reload-package package.toml"
    else:
        steps += [f"marship export {source}", f"marship optimize {source}"]
        package = reload = source
    steps.append(f"marship package {package}")
    parts = {
        "NAME": name,
        "DATA": starter.data,
        "STEPS": "\n".join(steps),
        "REQUEST": starter.request,
        "HANDLER": starter.handler,
        "RELOAD": reload,
    }
    return re.sub(r"@(\w+)@", lambda found: parts[found[1]], text)
