"""promtool, which holds pages and rules against what Prometheus takes."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def promtool(words: Sequence[str | Path], given: bytes = b"") -> tuple[int, str]:
    """Run it; its exit code and what it said."""
    found = shutil.which("promtool")
    assert found, "these tests need promtool: apt-get install prometheus"
    done = subprocess.run([found, *words], input=given, capture_output=True, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


def samples(page: str) -> dict[str, float]:
    """The values of a page, by name and labels as they stand there."""
    rows = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}
