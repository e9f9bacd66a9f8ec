"""A rollout holds a handler of one's own against its golden requests."""

from pathlib import Path

import pytest

import marship
from marship import Client
from marship.errors import RolloutError
from marship.operate.rollout import RolloutListener, rollout
from versions import linear

HANDLER = """
import numpy as np
import orjson

from marship.serving.handler import OnnxHandler, Reply


class Own(OnnxHandler):
    def decode(self, request):
        return {"input": np.frombuffer(request.body, np.uint8).astype(np.float32)[None]}, None

    def encode(self, outputs, state):
        self.calls = getattr(self, "calls", 0) + 1
        scores = outputs["output"][0] * (0.5 if IS_WRONG else 1)
        return Reply(orjson.dumps({"scores": scores.tolist()}))
"""


class Told(RolloutListener):
    """Remembers what was told."""

    def __init__(self) -> None:
        self.done: dict[str, str] = {}

    def on_done(self, step: str, details: str) -> None:
        """Remember it."""
        self.done[step] = details


def pack(folder: Path, store: Path, version: str, is_wrong: str = "False") -> None:
    """A version with a golden request; one that is wrong answers otherwise once it serves."""
    folder.mkdir()
    handler, request = folder / "own_handler.py", folder / "a.bin"
    handler.write_text(HANDLER.replace("IS_WRONG", is_wrong))
    request.write_bytes(b"abc")
    settings = marship.PackageSettings(
        name="owned", version=version, versioned=True, model_store=store, handler=handler,
        golden_request=(str(request),),
    )  # fmt: skip
    marship.package(linear(folder / "m.onnx", 1), settings)


def test_a_version_is_promoted_by_its_golden_requests(
    client: Client, store: Path, tmp_path: Path
) -> None:
    """One that answers as recorded takes over; one that does not, once it serves, is removed."""
    pack(tmp_path / "1", store, "1.0")
    pack(tmp_path / "2", store, "2.0")
    pack(tmp_path / "3", store, "3.0", "self.calls > 1")
    client.register("owned-1.0.mar", workers=1)
    try:
        told = Told()
        rollout(client, "owned-2.0.mar", watcher=told)
        assert told.done["replay"].startswith("1 golden request replayed")
        with pytest.raises(RolloutError, match=r"golden request a\.bin must get the response"):
            rollout(client, "owned-3.0.mar")
        assert client.describe("owned")[0].version == "2.0"
    finally:
        client.unregister("owned")
