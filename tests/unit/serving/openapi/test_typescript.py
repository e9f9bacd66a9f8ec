"""A client in TypeScript that openapi-generator makes of models of each kind compiles."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hosted import TOKEN, exchange
from kinds import NAMES, hosting

GENERATOR = Path(sys.executable).with_name("openapi-generator-cli")
COMPILER = shutil.which("tsc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="needs: npm install --global typescript@5.9.3"),
]
FLAGS = "--noEmit --strict --target es2022 --module esnext --moduleResolution bundler"


def test_a_client_of_all_kinds_compiles(tmp_path: Path) -> None:
    """With the strict checks of tsc; each model has operations, and no name is another's."""
    with hosting(tmp_path) as host:
        status, text = exchange(host.address, "GET", "/openapi.json", token=TOKEN)
    assert status == 200
    document, made = tmp_path / "openapi.json", tmp_path / "made"
    document.write_bytes(text)
    words = [GENERATOR, "generate", "-i", document, "-g", "typescript-fetch", "-o", made]
    subprocess.run(words, check=True, capture_output=True)
    found = {path.stem.lower() for path in (made / "apis").iterdir()}
    assert {f"{name}api" for name in NAMES} <= found
    words = [COMPILER, *FLAGS.split(), "--lib", "es2022,dom", made / "index.ts"]
    compiled = subprocess.run(words, check=False, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stdout
