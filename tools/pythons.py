"""Runs the tests of what travels in every archive on each Python that pyproject.toml names.

An interpreter is taken from PATH or from pyenv; missing ones are reported. Each gets an
environment of its own below .venv/pythons, with the locked versions of what these tests need. What
compares with TorchServe's own protocol, which imports PyTorch, runs in `make test` alone: PyTorch
is gigabytes for each Python. So does what packs an archive with torch-model-archiver.

    python tools/pythons.py

They run side by side, and what each printed is shown when it ends. The Python that runs this is
left to `make test`, and so are nine of ten damaged pictures and recordings: the decoders are the
same ones, and a tenth shows that each Python calls them alike. Exit code 1: one failed.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / ".venv" / "pythons"
NEEDED = """
    aiohappyeyeballs aiohttp aiosignal annotated-doc annotated-types attrs backports-zstd certifi
    cffi charset-normalizer cryptography flatbuffers frozenlist httptools hypothesis idna iniconfig
    markdown-it-py mdurl ml-dtypes multidict numpy onnx onnxruntime orjson packaging pillow
    pluggy propcache protobuf psutil pycparser pydantic pydantic-core pygments pytest pyyaml
    requests rich shellingham simplejpeg sortedcontainers soundfile soxr tenseal torchserve typer
    typing-extensions typing-inspection urllib3 uvloop wheel yarl
""".split()  # noqa: SIM905  a line for each would be no table
_HOST = "tests/unit/serving/hosts/torchserve"
LEFT_OUT = (
    "--ignore=tests/unit/serving/openapi",  # needs jsonschema, mypy and what it is held against
    f"--ignore={_HOST}/test_wire.py",
    "--ignore=tests/unit/serving/private/test_handler.py",
    f"--deselect={_HOST}/test_worker.py::test_outside_of_a_worker_nothing_is_replaced",
)


def supported() -> list[str]:
    """The versions that the classifiers name."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)


def find(version: str) -> Path | None:
    """An interpreter of a version, if there is one here."""
    places = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = sorted(places.glob(f"{version}.*/bin/python{version}"))
    on_path = shutil.which(f"python{version}")
    for candidate in [*found, *([Path(on_path)] if on_path else [])]:
        probe = subprocess.run([candidate, "-c", ""], capture_output=True, check=False)
        if probe.returncode == 0:  # pyenv has commands on PATH that only say what is missing
            return candidate
    return None


def pins() -> list[str]:
    """The locked versions of what the tests need."""
    lock = (REPOSITORY / "requirements.lock").read_text()
    known = dict(re.findall(r"^([\w.-]+)==([\w.!+-]+)", lock, re.MULTILINE))
    return [f"{name}=={known[name]}" for name in NEEDED]


def run(*command: str | Path) -> tuple[int, str]:
    """Run a command here; its exit code, and what it printed."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "FUZZ_COUNT": "2000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test(version: str, python: Path) -> tuple[bool, str]:
    """Whether the tests pass on an interpreter, and what was printed."""
    folder = FOLDER / version
    own = folder / "bin" / "python"
    pip = (own, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
    made = [] if own.exists() else [(python, "-m", "venv", folder)]
    for command in [*made, (*pip, *pins())]:
        code, printed = run(*command)
        if code != 0:
            return False, printed
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "checkout.pth").write_text(f"{REPOSITORY / 'src'}\n{REPOSITORY / 'tests'}\n")
    code, printed = run(own, "-m", "pytest", "-q", "tests/unit/serving", *LEFT_OUT)
    return code == 0, printed


def main() -> int:
    """Test each; the exit code."""
    this = f"{sys.version_info.major}.{sys.version_info.minor}"
    results = dict.fromkeys(supported(), "not here, not tested")
    results[this] = "this one, tested by make test"
    found = {version: find(version) for version in results if version != this}
    with ThreadPoolExecutor() as pool:
        running = {
            pool.submit(test, version, python): version
            for version, python in found.items()
            if python
        }
        for done in as_completed(running):
            is_passed, printed = done.result()
            print(f"Python {running[done]}: {found[running[done]]}\n{printed}", flush=True)
            results[running[done]] = "passed" if is_passed else "FAILED"
    for version, result in results.items():
        print(f"Python {version}: {result}")
    return int("FAILED" in results.values())


if __name__ == "__main__":
    sys.exit(main())
