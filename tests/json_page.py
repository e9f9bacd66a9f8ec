"""The fields of `--json`, as docs/json.md lists them."""

import json
import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from marship.cli import app

DOCS = (Path(__file__).parents[1] / "docs" / "json.md").read_text()


def documented(name: str) -> set[str]:
    """The fields of a command or a thing, as its row names them."""
    (row,) = re.findall(rf"^\| (?:`\w+`, )*`?{name}`?(?:, `\w+`)* \|(.*)\|$", DOCS, re.MULTILINE)
    row = re.sub(r"\([^)]*\)", "", row)
    if found := re.search(r"those of (a \w+)", row):
        return documented(found[1])
    return set(re.findall(r"`(\w+)`", row))


def run(*words: str | Path) -> Any:
    """The value that a command prints with `--json`."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, (words, done.exception, done.output)
    return json.loads(done.stdout)


def fields(found: Any, name: str) -> Any:
    """The value, whose fields must be those of the page."""
    assert set(found) == documented(name)
    return found
