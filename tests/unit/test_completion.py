"""A real bash completes commands, flags and archives, once completion is installed."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TIMEOUT_S = 60
PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """An environment whose home folder is this test's."""
    kept = {name: value for name, value in os.environ.items() if "MARSHIP" not in name}
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "HOME": str(tmp_path), "PATH": path, "TERM": "dumb", "PS1": "$ "}


def typed(keys: str, wanted: str, folder: Path, variables: dict[str, str]) -> str:
    """What an interactive bash shows after these keys, as soon as that is in it."""
    master, slave = pty.openpty()
    words = ["bash", "--rcfile", str(folder / ".bashrc"), "-i"]
    with subprocess.Popen(
        words,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=folder,
        env=variables,
        start_new_session=True,
    ) as shell:
        os.close(slave)
        try:
            os.write(master, keys.encode())
            shown, end = "", time.monotonic() + TIMEOUT_S
            while wanted not in shown and time.monotonic() < end:
                if select.select([master], [], [], 1)[0]:
                    shown += os.read(master, 65536).decode(errors="replace")
            return shown
        finally:
            shell.kill()
            os.close(master)


def test_bash_completes_what_was_begun(tmp_path: Path, variables: dict[str, str]) -> None:
    """A command, a flag, a flag's value, and an archive of ./model_store."""
    install = ["bash", "-c", "marship --install-completion; true"]
    done = subprocess.run(install, env=variables, capture_output=True, text=True, check=True)
    assert (tmp_path / ".bashrc").is_file(), done
    (tmp_path / "model_store").mkdir()
    (tmp_path / "model_store" / "whales-2.0.mar").touch()
    for keys, wanted in (
        ("marship unreg\t", "marship unregister "),
        ("marship apply --dry\t", "--dry-run "),
        ("marship register wha\t", "whales-2.0.mar "),
        ("marship package model.onnx --profile thr\t", "throughput"),
        ("marship new mine --from rec\t", "recommend"),
    ):
        assert wanted in typed(keys, wanted, tmp_path, variables)


def test_the_script_for_a_shell_is_shown(variables: dict[str, str]) -> None:
    """To copy it where installing is somebody else's task."""
    words = ["bash", "-c", "marship --show-completion; true"]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
    assert "complete -o default -F _marship_completion marship" in done.stdout
