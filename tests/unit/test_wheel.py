"""What is built and installed is whole: commands, settings and handlers come with the wheel."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with marship's wheel, far from the checkout; what it needs is found here."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, REPOSITORY]
    subprocess.run(list(map(str, [*pip, *build])), check=True)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("marship-*.whl")
    install = ["--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(list(map(str, [*pip, *install])), check=True)
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def call(python: Path, folder: Path, *words: str) -> str:
    """Run the installed command in a folder of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-m", "marship", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_onnx_file_is_packed_and_served_without_the_checkout(
    installed: Path, linear_onnx: Path, tmp_path: Path
) -> None:
    """Package finds the handler, serve the settings, and the model answers."""
    where = subprocess.run(
        [installed, "-c", "import marship; print(marship.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert str(REPOSITORY) not in where.stdout
    call(installed, tmp_path, "package", str(linear_onnx))
    call(installed, tmp_path, "serve", "--detach", "--free-ports")
    try:
        call(installed, tmp_path, "register", "linear")
        assert "16.0" in call(installed, tmp_path, "predict", "linear", "--json", "[[1, 2, 3]]")
    finally:
        call(installed, tmp_path, "stop")
