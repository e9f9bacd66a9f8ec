"""`marship new`: a folder that works as it stands, from each recipe."""

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forked import Forked
from json_page import fields, run
from marship.cli.project import KINDS
from marship.errors import StorageError, UsageError
from marship.packaging.project import STARTERS, new


def test_the_command_completes_and_lists_what_there_is() -> None:
    """Its list stands apart, so that --help is instant."""
    assert set(KINDS) == set(STARTERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_has_all_that_it_needs(kind: str, tmp_path: Path) -> None:
    """Recipe, what that imports, handler, test, README; the model has the folder's name."""
    folder = tmp_path / "below" / "my-model.1"
    made = fields(run("new", folder, "--from", kind), "new")
    files = {Path(name) for name in made["files"]}
    assert files == {path for path in folder.rglob("*") if path.is_file()}
    readme = (folder / "README.md").read_text()
    assert "@" not in readme
    assert "marship register my-model.1" in readme
    beside = {path.stem for path in (folder / "training").glob("*.py")}
    there = {path.stem for path in Path("training").glob("*.py")}
    for path in folder.rglob("*.py"):
        compile(path.read_bytes(), path, "exec")
        named = {
            n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
        }
        assert named & there <= beside
    if kind != "onnx":
        text = (folder / "training" / f"{kind}.py").read_text()
        assert 'name="my-model.1"' in text
        assert text.count('handler="handlers/') == 1
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder with a file is left as it is; an empty one is taken."""
    (tmp_path / "empty").mkdir()
    assert new(tmp_path / "empty", "onnx")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="must be empty or not there yet, got files"):
        new(tmp_path / "empty", "onnx")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a", "tabular", "--from must be one of regression, image, .* got 'tabular'"),
        ("bad name", "onnx", "letters, digits, dots, dashes and underscores, got 'bad name'"),
    ],
)
def test_what_cannot_be_begun(name: str, kind: str, message: str, tmp_path: Path) -> None:
    """One line, and no folder."""
    with pytest.raises(UsageError, match=message):
        new(tmp_path / name, kind)
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_takes_no_folders_is_told_by_the_name_that_was_given() -> None:
    """Not by that of a draft, which nobody typed."""
    with pytest.raises(StorageError, match=r"^/proc/x must be writable, got: No such file"):
        new(Path("/proc/x"), "onnx")


def forked(words: list[Any], **_: object) -> None:
    """Run a recipe from a process that has imported PyTorch: see tests/forked.py."""
    with Forked(*map(str, words[1:])) as process:
        done = process.wait(120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("torchlib_read_once")
@pytest.mark.parametrize("kind", KINDS)
def test_its_own_test_succeeds(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, export, packing with the handler of the folder, loading and a request."""
    folder = tmp_path / "mine"
    new(folder, kind)
    spec = importlib.util.spec_from_file_location("own_test", folder / "tests" / "test_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.subprocess = SimpleNamespace(run=forked)  # type: ignore[attr-defined]
    (test,) = (value for name, value in vars(module).items() if name.startswith("test_"))
    (tmp_path / "run").mkdir()
    test(tmp_path / "run", monkeypatch)
