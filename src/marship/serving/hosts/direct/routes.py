"""Which paths there are, and what each of them answers.

    GET, POST /predictions/{model}[/{version}]            a prediction
    POST /v2/models/{model}[/versions/{version}]/infer    the same by KServe v2
    GET  /v2/models/{model}[/versions/{version}]          what the model takes and gives
    GET  /v2/models/{model}[/versions/{version}]/ready    whether it serves requests
    GET  /v2, /v2/health/live, /v2/health/ready, /ping    the server itself

Source: Open Inference Protocol, "Required" REST API and the model metadata extension.
"""

from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

import orjson

from marship.contract import Contract, TensorSpec
from marship.serving.formats import kserve
from marship.serving.message import Reply

PREDICT, METADATA, READY, SERVER, LIVE, SERVER_READY, PING = (
    "predict", "metadata", "ready", "server", "live", "server ready", "ping",
)  # fmt: skip
METHODS = {PREDICT: ("POST", "GET", "PUT"), METADATA: ("GET", "HEAD")}
_READ = ("GET", "HEAD")
_SERVER = {
    b"/ping": PING,
    b"/v2": SERVER,
    b"/v2/": SERVER,
    b"/v2/health/live": LIVE,
    b"/v2/health/ready": SERVER_READY,
}
OPEN = (READY, LIVE, SERVER_READY, PING)
"""Answered without a token: probes have none."""
_MODEL_PARTS, _VERSION_PARTS = 1, 3


@dataclass(frozen=True)
class Route:
    """A path that exists.

    Attributes:
        kind: What it answers.
        model: The model's name; empty where it is about the server.
        version: As the path names it; None is the default one.
        is_kserve: Whether it is a path of KServe v2.
    """

    kind: str
    model: str = ""
    version: str | None = None
    is_kserve: bool = False

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Those that it takes, beside OPTIONS."""
        if self.kind == PREDICT:
            return ("POST",) if self.is_kserve else ("POST", "GET", "PUT")
        return _READ


def find(target: bytes) -> Route | None:
    """The route of a target, whatever its query; None where there is none."""
    path = target.partition(b"?")[0]
    if kind := _SERVER.get(path):
        return Route(kind, is_kserve=path.startswith(b"/v2"))
    try:
        parts = [unquote(part, errors="strict") for part in path.decode("ascii").split("/")[1:]]
    except UnicodeDecodeError:
        return None
    if not all(parts) or any("/" in part for part in parts):  # the engine would split a name there
        return None
    return _of_model(parts)


def _of_model(parts: list[str]) -> Route | None:
    match parts:
        case ["predictions", model]:
            return Route(PREDICT, model)
        case ["predictions", model, version]:
            return Route(PREDICT, model, version)
        case ["v2", "models", model, *rest]:
            return _kserve(model, rest)
    return None


def _kserve(model: str, rest: list[str]) -> Route | None:
    version = None
    if rest[:1] == ["versions"] and len(rest) > 1:
        version, rest = rest[1], rest[2:]
    kinds = {(): METADATA, ("infer",): PREDICT, ("ready",): READY}
    kind = kinds.get(tuple(rest))
    return None if kind is None else Route(kind, model, version, is_kserve=True)


def metadata(name: str, versions: list[str], contract: Contract) -> Reply:
    """What a model takes and gives; an axis of any size is -1.

    The protocol has no place for sizes that must be multiples of a number: they are `parameters`.
    """
    facts = {
        "name": name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(spec) for spec in contract.inputs],
        "outputs": [_tensor(spec) for spec in contract.outputs],
        **({"parameters": {"steps": contract.steps}} if contract.steps else {}),
    }
    return Reply(orjson.dumps(facts))


def _tensor(spec: TensorSpec) -> dict[str, object]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": kserve.NAMES[spec.dtype], "shape": shape}


def server(version: str) -> Reply:
    """The server's own metadata."""
    facts = {"name": "marship", "version": version, "extensions": ["binary_tensor_data"]}
    return Reply(orjson.dumps(facts))
