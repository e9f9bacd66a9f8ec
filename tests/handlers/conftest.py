"""Handlers run here as a worker runs them: from an extracted archive, in TorchServe's context.

Only the socket is left out; tests/server has that too.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ts.context import Context

from workers import Worker


@pytest.fixture
def worker(tmp_path: Path) -> Callable[[Path, type], Worker]:
    """Start a handler class on an archive."""

    def start(archive: Path, kind: type) -> Worker:
        folder = tmp_path / "extracted"
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder)
        manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
        config = yaml.safe_load((folder / "model-config.yaml").read_text())
        name = manifest["model"]["modelName"]
        context = Context(name, str(folder), manifest, 8, None, "0.12.0", model_yaml_config=config)
        return Worker(kind(), context)

    return start
