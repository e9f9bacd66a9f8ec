"""A real server of the model of ten numbers, and what its clients need to reach it."""

import contextlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from directly import ARCHIVE
from marship.engines.torchserve.server import Server, start, stop
from marship.engines.torchserve.settings import ServeSettings


def write_model(folder: Path) -> Path:
    """Write the model."""
    with zipfile.ZipFile(ARCHIVE) as zipped:
        return Path(zipped.extract("model.onnx", folder))


@contextlib.contextmanager
def serving(home: Path, store: Path, **settings: Any) -> Iterator[Server]:
    """A server on free ports, as long as this is entered."""
    started = start(ServeSettings(home=home, model_store=store, free_ports=True, **settings))
    try:
        yield started
    finally:
        stop(home)


def bearer(server: Server) -> str:
    """What a client sends as its authorization."""
    return f"Bearer {json.loads(server.home.key_file.read_text())['inference']['key']}"


def direct_address(server: Server) -> str:
    """Host and port of the direct address."""
    return (server.record.direct_url or "").removeprefix("http://")
