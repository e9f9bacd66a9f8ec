"""What is built and installed is whole: commands, settings and handlers come with the wheel."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marship.cli.project import KINDS

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
BASE_PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
HANDLER = "onnx_handler.py"
NEEDED = sysconfig.get_path("purelib")
"""Where what marship needs is installed, marship itself as a link to this checkout."""


@dataclass(frozen=True)
class Installed:
    """A Python that has marship's wheel and finds what that needs."""

    python: Path
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, folder: Path, *words: str) -> str:
        """What it prints in a folder."""
        known = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [self.python, *words],
            cwd=folder,
            env={**known, **self.variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def marship(self, folder: Path, *words: str) -> str:
        """What the command prints in a folder."""
        return self.run(folder, "-m", "marship", *words)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip wheel` builds."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, REPOSITORY]
    subprocess.run(list(map(str, [*PIP, *build])), check=True)
    (built,) = folder.glob("marship-*.whl")
    return built


@pytest.fixture(scope="module")
def in_venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """In an environment of its own."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install(wheel, python)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    (site / "others.pth").write_text(f"{NEEDED}\n")
    return Installed(python)


@pytest.fixture(scope="module")
def for_user(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With `pip install --user`."""
    variables = {"PYTHONUSERBASE": str(tmp_path_factory.mktemp("user"))}
    install(wheel, BASE_PYTHON, "--user", "--break-system-packages", **variables)
    return Installed(BASE_PYTHON, {**variables, "PYTHONPATH": NEEDED})


@pytest.fixture(scope="module")
def in_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With `pip install --target`."""
    folder = str(tmp_path_factory.mktemp("target"))
    install(wheel, BASE_PYTHON, "--target", folder)
    return Installed(BASE_PYTHON, {"PYTHONPATH": f"{folder}{os.pathsep}{NEEDED}"})


def install(wheel: Path, python: Path, *options: str, **variables: str) -> None:
    """Install the wheel alone."""
    words = ["--python", str(python), "install", "--no-deps", "--no-index", *options, str(wheel)]
    subprocess.run([*PIP, *words], check=True, env={**os.environ, **variables})


def test_the_page_comes_with_the_wheel(wheel: Path) -> None:
    """All files that a browser gets, those of Swagger UI where they were fetched."""
    source = REPOSITORY / "src"
    files = (source / "marship" / "engines" / "page").rglob("*")
    wanted = {str(path.relative_to(source)) for path in files if path.suffix not in ("", ".pyc")}
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("way", ["in_venv", "for_user", "in_folder"])
def test_each_way_to_install_gives_a_marship_that_packages(
    way: str, linear_onnx: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """It packs its own handler, whatever ./handlers holds; one that is named is that one."""
    installed: Installed = request.getfixturevalue(way)
    where = installed.run(tmp_path, "-P", "-c", "import marship; print(marship.__file__)")
    assert str(REPOSITORY) not in where
    assert "package" in installed.marship(tmp_path, "--help")
    own = (REPOSITORY / "handlers" / HANDLER).read_bytes()
    stray = tmp_path / "handlers" / HANDLER
    stray.parent.mkdir()
    stray.write_bytes(b"# another one\n" + own)
    (tmp_path / HANDLER).write_bytes(b"raise SystemExit\n")
    installed.marship(tmp_path, "package", str(linear_onnx))
    assert packed_handler(tmp_path) == own
    installed.marship(tmp_path, "package", str(linear_onnx), "--handler", f"handlers/{HANDLER}")
    assert packed_handler(tmp_path) == stray.read_bytes()


def packed_handler(folder: Path) -> bytes:
    """The handler in the archive."""
    with zipfile.ZipFile(folder / "model_store" / "linear.mar") as archive:
        return archive.read(HANDLER)


def test_an_onnx_file_is_packed_and_served_without_the_checkout(
    in_venv: Installed, linear_onnx: Path, tmp_path: Path
) -> None:
    """Package finds the handler, serve the settings, and the model predicts."""
    in_venv.marship(tmp_path, "package", str(linear_onnx))
    in_venv.marship(tmp_path, "serve", "--detach", "--free-ports")
    try:
        in_venv.marship(tmp_path, "register", "linear")
        answer = in_venv.marship(tmp_path, "predict", "linear", "--json", "[[1, 2, 3]]")
        assert "16.0" in answer
    finally:
        in_venv.marship(tmp_path, "stop")


def test_folders_are_begun_without_the_checkout(in_venv: Installed, tmp_path: Path) -> None:
    """Recipes, handlers and templates come with the wheel."""
    for kind in KINDS:
        in_venv.marship(tmp_path, "new", kind, "--from", kind)
        assert (tmp_path / kind / "handlers").is_dir()
        assert (tmp_path / kind / "training").is_dir() == (kind != "onnx")
