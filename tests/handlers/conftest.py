"""Handlers run here as a worker runs them: from an extracted archive, in TorchServe's context.

Only the socket is left out; tests/server has that too.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from workers import Worker, opened


@pytest.fixture
def worker(tmp_path: Path) -> Callable[[Path, type], Worker]:
    """Start a handler class on an archive."""
    return lambda archive, kind: opened(archive, tmp_path / "extracted", kind)
