"""Tests wait for what happens; a pause of fixed length says at its line what it is for."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAUSE = re.compile(r"\bsleep\((?!0\)|\))")
"""Also in programs that tests write; `sleep(0)` only lets other tasks of the loop run."""


def unexplained(text: str) -> list[int]:
    """Numbers of lines that pause without a comment."""
    lines = enumerate(text.splitlines(), 1)
    return [n for n, line in lines if PAUSE.search(line) and not re.search(r"#\s+\S", line)]


def test_a_pause_without_a_comment_is_found() -> None:
    """A call, and one in a text; not one that is explained, nor one that only gives way."""
    lines = [
        "time.sleep(1)",
        "await asyncio.sleep(0.5)  # why",
        "asyncio.sleep(0)",
        "X = 'sleep(9)'",
    ]
    assert unexplained("\n".join(lines)) == [1, 4]


def test_every_pause_in_the_tests_says_why() -> None:
    """A condition is waited for with `waiting.until`, which is explained once."""
    found = {
        str(path.relative_to(TESTS)): lines
        for path in TESTS.rglob("*.py")
        if path != Path(__file__) and (lines := unexplained(path.read_text()))
    }
    assert not found
