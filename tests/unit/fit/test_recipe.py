"""A run folder tells later steps what they need; references find the reader's code."""

import os
from pathlib import Path

import pytest

from marship.errors import DataError, UsageError
from marship.fit.recipe import Recipe, resolve


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    """What is saved is what is loaded."""
    recipe = Recipe(
        name="m",
        build="a.py:build",
        pad_values={"x": 0.0},
        dynamic=("y:1=height",),
        bounds={"length": (1, None)},
        assets=("a",),
    )
    recipe.save(tmp_path)
    assert Recipe.load(tmp_path) == recipe


def test_a_folder_without_recipe_says_what_to_do(tmp_path: Path) -> None:
    """A folder that no recipe wrote is a usage error; a broken file a data error."""
    with pytest.raises(UsageError, match="Train first"):
        Recipe.load(tmp_path)
    for text in ("{", "[]", '{"name": "m"}'):
        (tmp_path / "recipe.json").write_text(text)
        with pytest.raises(DataError, match="Train again"):
            Recipe.load(tmp_path)


def test_references_find_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """file.py:function and package.module:function both work from the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_file.py").write_text("def build(): return 1\n")
    os.makedirs(tmp_path / "own_package")  # noqa: PTH103
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "net.py").write_text("def build(): return 2\n")
    assert resolve("own_file.py:build")() == 1
    assert resolve("own_package.net:build")() == 2


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("own", "must read module:function"),
        ("absent.py:build", "must be a Python file"),
        ("absent_module:build", "must be importable"),
        ("os.path:absent", "must define a function absent"),
        ("broken_file.py:build", "must be importable, got: SyntaxError"),
        ("raising_file.py:build", "must be importable, got: ZeroDivisionError"),
    ],
)
def test_bad_references_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, words: str
) -> None:
    """No such file, module or function, or one that fails when imported: one clear line each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_file.py").write_text("def build(:\n")
    (tmp_path / "raising_file.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match=words):
        resolve(reference)
