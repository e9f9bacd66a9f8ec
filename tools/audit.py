"""Asks PyPI whether the locked packages have known flaws, with pip-audit; doubt is a failure.

pip-audit by itself counts a package that no service could be queried about as one without
flaws, and ends well. Here that is an error: without an answer for each package there is no audit.

    python tools/audit.py [requirements.lock ...]

Exit code 0: all were queried, no flaws. 1: flaws, printed. 2: not all could be queried.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FLAWS, UNKNOWN = 1, 2
FLAGS = ("--format=json", "--desc=off", "--progress-spinner=off", "--no-deps", "--disable-pip")
_PIN = re.compile(r"^[\w.-]+==[\w.!+-]+", re.MULTILINE)


def ask(files: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """pip-audit's report on lock files; None, and its last words, where it made none.

    It asks by name and version, and takes no file that has hashes for some packages only.
    """
    pins = [pin for file in files for pin in _PIN.findall(Path(file).read_text())]
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "pins.txt"
        named.write_text("\n".join(pins) + "\n")
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *FLAGS, "-r", str(named)],
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        return json.loads(done.stdout), ""
    except ValueError:
        return None, (done.stderr.strip().splitlines() or ["it said nothing"])[-1]


def judge(report: dict[str, Any]) -> tuple[list[str], int]:
    """What to print of a report, and the exit code."""
    packages = report["dependencies"]
    skipped = [item for item in packages if "skip_reason" in item]
    flaws = [
        f"{item['name']} {item['version']}: {', '.join([flaw['id'], *flaw['aliases']])}"
        f", fixed in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for item in packages
        for flaw in item.get("vulns", [])
    ]
    if skipped or not packages:
        why = skipped[0]["skip_reason"] if skipped else "the files name no package"
        unasked = (
            f"error: PyPI must tell about each locked package, got nothing about {len(skipped)} of "
            f"{len(packages)}: {why}. Run it where https://pypi.org can be reached."
        )
        return [*flaws, unasked], UNKNOWN
    if flaws:
        return flaws, FLAWS
    sound = (
        f"{len(packages)} packages, none with a known flaw. TorchServe's Java parts are not "
        "PyPI's: docs/threat-model.md"
    )
    return [sound], 0


def main() -> int:
    """Ask, and print."""
    report, reason = ask(sys.argv[1:] or ["requirements.lock"])
    if report is None:
        print(f"error: PyPI's advisories must be reachable, got: {reason}")
        return UNKNOWN
    lines, code = judge(report)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
