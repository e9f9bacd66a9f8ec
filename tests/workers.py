"""A handler with TorchServe's context, as a worker process has it, without the socket."""

import importlib.util
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from ts.context import Context, RequestProcessor

HANDLERS = Path(__file__).parents[1] / "handlers"


@dataclass
class Answer:
    """One answer as TorchServe would send it."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)


class Worker:
    """A handler with its context."""

    def __init__(self, handler: Any, context: Context) -> None:
        self.handler = handler
        self.context = context
        handler.initialize(context)

    def __call__(self, *rows: Mapping[str, Any], content_type: str = "") -> list[Answer]:
        """Answer one batch; each row is the parameters of one request."""
        headers = [{name: {"content-type": content_type} for name in row} for row in rows]
        self.context.request_processor = [RequestProcessor(header) for header in headers]
        bodies = self.handler.handle(list(rows), self.context)
        return [
            Answer(
                self.context.get_response_status(i)[0], self.context.get_response_headers(i), body
            )
            for i, body in enumerate(bodies)
        ]


def opened(archive: Path, folder: Path, kind: type) -> Worker:
    """A handler class on an archive, which is extracted into `folder`."""
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder)
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
    config = yaml.safe_load((folder / "model-config.yaml").read_text())
    name = manifest["model"]["modelName"]
    context = Context(name, str(folder), manifest, 8, None, "0.12.0", model_yaml_config=config)
    return Worker(kind(), context)


def load_module(name: str) -> ModuleType:
    """A handler's file as a module."""
    spec = importlib.util.spec_from_file_location(name, HANDLERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
