"""The public names: what they are, how they are found, and the examples in their docstrings."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import examples
import marship
from marship import errors

pytestmark = pytest.mark.slow

STEPS = ["export", "optimize", "package", "check"]


def test_every_error_is_public() -> None:
    """Whoever catches one finds it in `marship`."""
    kinds = {kind.__name__ for kind in errors.kinds() if kind.__module__ == "marship.errors"}
    assert kinds <= set(marship.__all__)


def test_names_are_sorted_found_and_documented() -> None:
    """Each has a docstring, and `dir` shows it."""
    assert marship.__all__ == sorted(marship.__all__)
    assert set(marship.__all__) <= set(dir(marship))
    for name in marship.__all__:
        assert inspect.getdoc(getattr(marship, name)), name


def test_no_module_takes_the_place_of_a_name(tmp_path: Path) -> None:
    """However much is imported, in whichever order, names stay what they are."""
    code = (
        "import pkgutil, importlib, marship\n"
        "for module in pkgutil.walk_packages(marship.__path__, 'marship.'):\n"
        "    if 'loading_process' in module.name or 'worker_script' in module.name: continue\n"
        "    if '.handlers' in module.name or '__main__' in module.name: continue\n"
        "    importlib.import_module(module.name)\n"
        "for name in marship.__all__:\n"
        "    assert getattr(marship, name).__name__ == name, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_the_steps_from_a_model_to_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their examples, one after the other, as the docstrings have them."""
    monkeypatch.chdir(tmp_path)
    examples.write_files()
    Path("model_store").mkdir()
    for name in STEPS:
        assert examples.run(name), name


def test_every_other_name_that_can_has_an_example() -> None:
    """Settings and results; errors have one together, with the class they derive from."""
    others = set(marship.__all__) - set(STEPS) - examples.NEED_A_SERVER
    for name in sorted(others - {kind.__name__ for kind in errors.kinds()} | {"MarshipError"}):
        assert examples.run(name), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = marship.nothing
