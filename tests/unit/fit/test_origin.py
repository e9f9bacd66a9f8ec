"""marship.fit.origin: what a result depends on is found without running it."""

from pathlib import Path

import pytest

from marship.fit import origin


def write(folder: Path, files: dict[str, str]) -> None:
    """Python files by path without suffix."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    "statement",
    [
        "import layers",
        "import layers as other",
        "from layers import width",
        "def f():\n    import layers",
        "try:\n    import missing\nexcept ImportError:\n    from layers import width",
        "import package.deep",
        "from package import deep",
        "from package.deep import width",
        "import middle",
    ],
)
def test_modules_of_ones_own_are_found_however_they_are_imported(
    statement: str, tmp_path: Path
) -> None:
    """Directly, through another, in a package, late."""
    write(tmp_path, {"net": statement, "layers": "", "middle": "import layers"})
    write(tmp_path, {"package/__init__": "", "package/deep": "import layers"})
    found = {file.name for file in origin.local_files(tmp_path / "net.py")}
    assert {"net.py", "layers.py"} <= found


def test_relative_imports_are_followed(tmp_path: Path) -> None:
    """Within a package, up and down."""
    write(tmp_path, {"p/a": "from . import b\nfrom .q import c", "p/b": "", "p/d": ""})
    write(tmp_path, {"p/q/c": "from ..d import x", "p/__init__": "", "p/q/__init__": ""})
    found = {str(file.relative_to(tmp_path)) for file in origin.local_files(tmp_path / "p/a.py")}
    assert found == {"p/__init__.py", "p/a.py", "p/b.py", "p/d.py", "p/q/__init__.py", "p/q/c.py"}


def test_what_is_installed_is_left_to_its_version(tmp_path: Path) -> None:
    """Neither Python's own modules nor packages, nor marship; and what is broken is no error."""
    code = "import json, torch, numpy.linalg, marship.contract\nimport broken"
    write(tmp_path, {"net": code, "broken": "import ("})
    found = {file.name for file in origin.local_files(tmp_path / "net.py")}
    assert found == {"net.py", "broken.py"}


def test_a_cycle_of_imports_ends(tmp_path: Path) -> None:
    """Two modules that import each other."""
    write(tmp_path, {"a": "import b", "b": "import a"})
    assert len(origin.local_files(tmp_path / "a.py")) == 2


def test_the_networks_of_the_speech_recipe_count() -> None:
    """Editing one of both changes what an export of the recipe is made from."""
    training = Path(__file__).parents[3] / "training"
    found = {file.name for file in origin.local_files(training / "speech.py")}
    assert {"speech_network.py", "whisper_encoder.py"} <= found


def test_the_machine_is_identified_by_processor_features_and_cores() -> None:
    """What int8 kernels and measured times depend on."""
    found = origin.machine()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert isinstance(found["features"], list)
