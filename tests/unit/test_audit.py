"""`make audit` never passes where PyPI cannot be reached."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "audit.py"
SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
UNASKED = {"name": "torch", "skip_reason": "Dependency not found on PyPI: torch (2.13.0)"}
FLAWED = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [{"id": "PYSEC-2014-8", "aliases": ["CVE-2014-1402"], "fix_versions": ["2.7.2"]}],
}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([SOUND], 0, "none with a known flaw"),
        ([SOUND, FLAWED], 1, "jinja2 2.4.1: PYSEC-2014-8, CVE-2014-1402, fixed in 2.7.2"),
        ([SOUND, UNASKED], 2, "1 of 2: Dependency not found"),
        ([FLAWED, UNASKED], 2, "PYSEC-2014-8"),
        ([], 2, "no package"),
    ],
)
def test_only_reports_about_all_are_good(
    audit: ModuleType, packages: list[dict[str, Any]], code: int, says: str
) -> None:
    """Flaws fail, and so does a package that PyPI said nothing about."""
    lines, found = audit.judge({"dependencies": packages, "fixes": []})
    assert found == code
    assert says in "\n".join(lines)


def test_pins_are_read_from_locks_with_and_without_hashes(audit: ModuleType) -> None:
    """Names and versions count; hashes, comments and markers do not."""
    hashed = "orjson==3.13.0 \\\n    --hash=sha256:00\n"
    lock = f"# torch apart\n{hashed}torch==2.13.0+cpu\ntomli==2.5.0 ; x\n"
    assert audit._PIN.findall(lock) == ["orjson==3.13.0", "torch==2.13.0+cpu", "tomli==2.5.0"]


def test_no_network_is_one_line(tmp_path: Path) -> None:
    """Where PyPI cannot be reached, one line says so and the exit code is 2."""
    (tmp_path / "some.lock").write_text("orjson==3.13.0\n")
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "some.lock"],
        cwd=tmp_path,
        env={**os.environ, **nowhere, "XDG_CACHE_HOME": str(tmp_path), "NO_PROXY": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout
    assert done.stdout.startswith("error: ")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
