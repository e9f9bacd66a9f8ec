"""engines.torchserve.worker_script: where a worker finds TorchServe and what belongs to it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from marship.engines.torchserve.java import WORKER_SCRIPT

WORKER = "import json, os, sys; print(json.dumps([sys.path, os.environ.get('PYTHONPATH')]))"


@pytest.mark.parametrize("before", [None, "/models/one"])
def test_packages_of_pip_target_are_found_last(tmp_path: Path, before: str | None) -> None:
    """Behind an archive's own modules; what the worker starts finds them as well."""
    target, links = tmp_path / "target", tmp_path / "site-packages" / "ts"
    (target / "ts" / "protocol").mkdir(parents=True)
    for name in ("__init__.py", "protocol/__init__.py", "protocol/otf_message_handler.py"):
        (target / "ts" / name).write_text("")
    (target / "ts" / "model_service_worker.py").write_text(WORKER)
    links.mkdir(parents=True)
    (links / "__init__.py").symlink_to(target / "ts" / "__init__.py")
    (links / "model_service_worker.py").symlink_to(WORKER_SCRIPT)
    done = subprocess.run(
        [sys.executable, "-S", links / "model_service_worker.py"],  # -S: without site-packages
        env={} if before is None else {"PYTHONPATH": before},
        capture_output=True,
        text=True,
        check=True,
    )
    path, python_path = json.loads(done.stdout)
    assert path[-1] == str(target)
    assert python_path == (str(target) if before is None else f"{before}:{target}")
