"""The recipes of training/ and the commands, each in a process of its own."""

import subprocess
from pathlib import Path

from forked import Forked

REPOSITORY = Path(__file__).parents[1]


def run_recipe(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """A recipe, which may fail."""
    with Forked(f"training/{name}.py", *flags, folder=REPOSITORY) as process:
        return process.wait(120)


def run_marship(*words: object) -> str:
    """A marship command's output; it must succeed."""
    with Forked("-m", "marship", *map(str, words), folder=REPOSITORY) as process:
        done = process.wait(600)
    assert done.returncode == 0, done.stderr
    return done.stdout
