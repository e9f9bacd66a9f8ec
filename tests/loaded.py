"""An archive as a worker has it, without a server."""

import json
import zipfile
from pathlib import Path
from typing import Any

import yaml

from marship import PackageSettings, package
from marship.contract import Contract
from marship.serving.handler import OnnxHandler
from marship.serving.message import JSON_TYPE, Request
from marship.serving.service import Placement


class Served:
    """An archive, loaded as a worker loads it."""

    def __init__(self, source: Path, **settings: Any) -> None:
        folder = source.parent / f"{source.stem}-store"
        archive = package(source, PackageSettings(model_store=folder, **settings))
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder / "extracted")
        self.folder = folder / "extracted"
        self.contract = Contract.from_json((self.folder / "contract.json").read_bytes())
        config = yaml.safe_load((self.folder / "model-config.yaml").read_text())
        self.service: Any = OnnxHandler()
        self.service.load(Placement(folder=self.folder, name="m", version="1.0", config=config))

    def ask(self, *bodies: bytes, kind: str = JSON_TYPE) -> list[Any]:
        """The replies to requests of one batch."""
        replies, _ = self.service.reply([Request(body=b, content_type=kind) for b in bodies])
        return list(replies)

    def json(self, value: Any) -> Any:
        """The response to one request, which must succeed."""
        (reply,) = self.ask(json.dumps(value).encode())
        assert reply.status == 200, reply.body
        return json.loads(reply.body)

    def refusal(self, value: Any) -> tuple[int, str]:
        """Status and message of a refused request."""
        (reply,) = self.ask(json.dumps(value).encode())
        return reply.status, json.loads(reply.body)["message"]
