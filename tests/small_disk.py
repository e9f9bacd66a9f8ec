"""A disk that is really full: a small file system of a namespace of its own."""

import subprocess
from pathlib import Path

import pytest


def run_on(
    folder: Path, size_kb: int, script: str, *words: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a file system of `size_kb` mounted at `folder`.

    In the script $0 is the folder and $1 and on are `words`. Mounting needs root or user
    namespaces; where the kernel gives neither, the test says so and is skipped.
    """
    mount = f'mkdir -p "$0" && mount -t tmpfs -o size={size_kb}k none "$0" && {script}'
    unshare = ["/usr/bin/unshare", "--mount", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel lets only root mount a small disk")
    return subprocess.run(
        [*unshare, "sh", "-c", mount, str(folder), *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
