"""Damaged recordings end in errors of a request, and in nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FUZZER = Path(__file__).parents[3] / "fuzz_sounds.py"
COUNT = int(os.environ.get("FUZZ_COUNT", "20000"))
"""Fewer on further Pythons, whose decoders are the same: see tools/pythons.py."""


def test_20_000_damaged_recordings(tmp_path: Path) -> None:
    """No crash, no hang, no other exception, within 2 s for one and 1 GB of address space.

    They run in a process of their own, so that a crash of a decoder fails this test alone. All
    formats and all errors come up, so the damage reaches what it should; and no decoder writes
    to the worker's log.
    """
    command = [sys.executable, FUZZER, "--count", str(COUNT), "--keep", tmp_path / "damaged"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found = dict(re.findall(r"\('(\w+)', (\d+)\)", done.stdout))
    assert sum(map(int, found.values())) > COUNT
    errors = {"invalid_input", "malformed", "too_large", "unsupported_media"}
    assert set(found) == {"wav", "flac", "vorbis", "opus", "mp3", *errors}
