"""A disk that is really full: a small file system of a namespace of its own."""

import subprocess
from pathlib import Path

from namespaces import run_apart


def run_on(
    folder: Path, size_kb: int, script: str, *words: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a file system of `size_kb` mounted at `folder`.

    In the script $0 is the folder and $1 and on are `words`.
    """
    mount = f'mkdir -p "$0" && mount -t tmpfs -o size={size_kb}k none "$0" && {script}'
    return run_apart(mount, folder, *words, cwd=cwd)
