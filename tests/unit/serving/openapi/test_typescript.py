"""A client in TypeScript that openapi-generator makes of each kind of model compiles."""

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kinds import NAMES, pack_kinds
from marship.cli import app

GENERATOR, COMPILER = shutil.which("openapi-generator-cli"), shutil.which("tsc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        GENERATOR is None or COMPILER is None,
        reason="needs: pip install openapi-generator-cli; npm install --global typescript",
    ),
]


def test_a_client_of_each_kind_compiles(tmp_path: Path) -> None:
    """With the strict checks of tsc; nothing that it imports is left out."""
    archives = pack_kinds(tmp_path / "packed")
    assert len(archives) == len(NAMES)
    for archive in archives:
        document, made = tmp_path / f"{archive.stem}.json", tmp_path / archive.stem
        done = CliRunner().invoke(app, ["openapi", str(archive), "--out", str(document)])
        assert done.exit_code == 0
        words = [GENERATOR, "generate", "-i", document, "-g", "typescript-fetch", "-o", made]
        subprocess.run(words, check=True, capture_output=True)
        strict = ["--noEmit", "--strict", "--target", "es2022", "--module", "esnext"]
        sources = ["--moduleResolution", "bundler", "--lib", "es2022,dom", made / "index.ts"]
        words = [COMPILER, *strict, *sources]
        compiled = subprocess.run(words, check=False, capture_output=True, text=True)
        assert compiled.returncode == 0, compiled.stdout
