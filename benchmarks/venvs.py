"""A venv for each peer, reused from run to run and rebuilt when its packages change."""

import hashlib
import subprocess
import venv
from pathlib import Path

import onnxruntime

FOLDER = Path(__file__).parent / ".venvs"


def packages_of(packages: tuple[str, ...]) -> list[str]:
    """What to install: the peer's packages, and the same ONNX Runtime for all."""
    return [f"onnxruntime=={onnxruntime.__version__}", "numpy", "orjson", *packages]


def python(peer: str, packages: tuple[str, ...]) -> Path:
    """The Python of a peer's venv, which is created if it is missing."""
    wanted = packages_of(packages)
    mark = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:8]
    folder = FOLDER / f"{''.join(filter(str.isalnum, peer)).lower()}-{mark}"
    found, done = folder / "bin" / "python", folder / "installed.txt"
    if not done.exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(found), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *wanted], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True)
        done.write_text(frozen.stdout)
    return found


def versions(peer: str, packages: tuple[str, ...]) -> list[str]:
    """The packages installed there, as pip freeze lists them."""
    return (python(peer, packages).parents[1] / "installed.txt").read_text().splitlines()
