"""The recipes of training/ and the commands, started as a person starts them."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def run_recipe(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """A recipe as a process of its own, on one thread."""
    return subprocess.run(
        [sys.executable, f"training/{name}.py", *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )


def run_marship(*words: object) -> str:
    """A marship command's output; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "marship", *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
