"""No figure in the docs without the command that prints it, or the date of its measurement."""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
LOG = REPOSITORY / "docs/decisions.md"
"""A dated log: each entry says what was measured and how."""
ORIGIN = re.compile(r"\b(?:python (?:benchmarks|training)/|make |marship |pytest )|November 2026")
NUMBER = re.compile(r"[*(]*[\d,]*\d(?:\.\d+)?\b")
COMMAND = re.compile(
    r"python ((?:benchmarks|training)/\w+\.py)((?:\s(?!python |marship )[^\s`#|;&)]+)*)"
)


def sections(page: Path) -> list[tuple[str, str]]:
    """Heading and text of each section of a page."""
    parts = re.split(r"^(#+ .*)$", page.read_text(), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def has_figures(text: str) -> bool:
    """Whether a table has a row with two numbers or more."""
    rows = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("|"))
    return any(sum(bool(NUMBER.match(cell.strip())) for cell in row) >= 2 for row in rows)


def commands() -> list[tuple[str, str, str]]:
    """Page, script and flags of each command that runs a recipe or a benchmark."""
    return [
        (page.name, script, " ".join(flags.split()))
        for page in PAGES
        if page != LOG
        for script, flags in COMMAND.findall(page.read_text().replace("\\\n", " "))
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if p != LOG], ids=lambda page: page.stem)
def test_each_table_of_figures_names_its_origin(page: Path) -> None:
    """In its own section: a command that prints them, or when they were measured."""
    missing = [
        heading for heading, text in sections(page) if has_figures(text) and not ORIGIN.search(text)
    ]
    assert not missing


@pytest.mark.parametrize(("page", "script", "flags"), commands())
def test_each_command_of_a_figure_has_flags_that_exist(
    page: str, script: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script is there and declares each flag; cases and servers have known names."""
    source = (REPOSITORY / script).read_text()
    if script.startswith("training/"):
        for settings in ("run", "privacy"):
            source += (REPOSITORY / f"src/marship/fit/{settings}.py").read_text()
    words = shlex.split(flags)
    for flag in (word for word in words if word.startswith("--") and word != "--help"):
        field = re.escape(flag.removeprefix("--").replace("-", "_"))
        declared = rf'^    {field}: |"{re.escape(flag)}"'
        assert re.search(declared, source, re.MULTILINE), f"{page}: {script} {flag}"
    if script == "benchmarks/run.py":
        monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
        known = {
            "--cases": importlib.import_module("cases").CASES,
            "--peers": importlib.import_module("peers").PEERS,
        }
        for flag, value in itertools.pairwise(words):
            assert value in known.get(flag, [value]), f"{page}: {flag} {value}"
