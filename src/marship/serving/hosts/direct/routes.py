"""Which paths there are, and what each of them answers.

    GET, POST /predictions/{model}[/{version}]            a prediction
    POST /v2/models/{model}[/versions/{version}]/infer    the same by KServe v2
    POST /v1/models/{model}[/versions/{version}]:predict  the same by KServe v1
    GET  /v2/models/{model}[/versions/{version}]          what the model takes and gives
    GET  /v2/models/{model}[/versions/{version}]/ready    whether it serves requests
    GET  /v1/models/{model}[/versions/{version}]          the same by KServe v1
    GET  /v2, /v2/health/live, /v2/health/ready, /ping    the server itself
    GET  /openapi.json, / and what the page is made of    the same, for programs and people
    POST /explanations/{model}[/{version}], /v1/...:explain, /v2/.../explain    501

Source: Open Inference Protocol, "Required" REST API and the model metadata extension; KServe's
data plane v1; the engine's own inference API.
"""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from urllib.parse import quote, unquote

import orjson

from marship.contract import Contract, TensorSpec
from marship.serving.formats import kserve
from marship.serving.message import Reply

PREDICT, EXPLAIN, METADATA, READY, SERVER, LIVE, SERVER_READY, PING, DOCUMENT, PAGE = (
    "predict", "explain", "metadata", "ready", "server", "live", "server ready", "ping",
    "document", "page",
)  # fmt: skip
DOCUMENT_PATH = b"/openapi.json"
_VERBS = {"predictions": PREDICT, "explanations": EXPLAIN}
_V1_KINDS = {"predict": PREDICT, "explain": EXPLAIN, READY: READY}
_READ = ("GET", "HEAD")
_SERVER = {
    b"/ping": PING,
    b"/v2": SERVER,
    b"/v2/": SERVER,
    b"/v2/health/live": LIVE,
    b"/v2/health/ready": SERVER_READY,
}
OPEN = frozenset((READY, LIVE, SERVER_READY, PING, PAGE))
"""Answered without a token: probes have none, nor has a browser before its user signs in."""
_MODEL_PARTS, _VERSION_PARTS = 1, 3
_ENDS = re.compile(r"(:\w+|/(infer|ready|explain))$")


@dataclass(frozen=True)
class Route:
    """A path that exists.

    Attributes:
        kind: What it answers.
        model: The model's name; empty where it is about the server.
        version: As the path names it; None is the default one.
        is_kserve: Whether it is a path of KServe, whose errors have a form of their own.
    """

    kind: str
    model: str = ""
    version: str | None = None
    is_kserve: bool = False

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Those that it takes, beside OPTIONS."""
        if self.kind in (PREDICT, EXPLAIN):
            return ("POST",) if self.is_kserve else ("POST", "GET", "PUT")
        return _READ

    def template(self, path: str) -> str:
        """The path with placeholders for the names in it.

        Example:
            >>> Route(PREDICT, "m", is_kserve=True).template("/v1/models/m:predict")
            '/v1/models/{model}:predict'
        """
        if not self.model:
            return path
        first = path.split("/")[1]
        if not self.is_kserve:
            return f"/{first}/{{model}}" + ("/{version}" if self.version else "")
        ends = _ENDS.search(path)
        version = "/versions/{version}" if self.version else ""
        return f"/{first}/models/{{model}}{version}{ends[0] if ends else ''}"


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
        case [("predictions" | "explanations") as verb, model]:
            return Route(_VERBS[verb], model)
        case [("predictions" | "explanations") as verb, model, version]:
            return Route(_VERBS[verb], model, version)
        case ["v1", "models", *rest]:
            return _kserve_v1(rest)
        case ["v2", "models", model, *rest]:
            return _kserve(model, rest)
    return None


def _kserve_v1(rest: list[str]) -> Route | None:
    *named, last = rest or [""]
    name, _, verb = last.partition(":") if ":" in last else (last, "", READY)
    kind = _V1_KINDS.get(verb)
    if kind is None or not name:
        return None
    match [*named, name]:
        case [model]:
            return Route(kind, model, is_kserve=True)
        case [model, "versions", version]:
            return Route(kind, model, version, is_kserve=True)
    return None


def _kserve(model: str, rest: list[str]) -> Route | None:
    version = None
    if (model, *rest)[-1].endswith(":explain"):  # as v1 has it
        return _kserve_v1([model, *rest])
    if rest[:1] == ["versions"] and len(rest) > 1:
        version, rest = rest[1], rest[2:]
    kinds = {(): METADATA, ("infer",): PREDICT, ("explain",): EXPLAIN, ("ready",): READY}
    kind = kinds.get(tuple(rest))
    return None if kind is None else Route(kind, model, version, is_kserve=True)


def versioned(path: bytes, version: str) -> bytes:
    """The path of a model's route that names this version, from one that names none.

    Example:
        >>> from marship.serving.hosts.direct import routes
        >>> routes.versioned(b"/v2/models/m/infer", "2.0")
        b'/v2/models/m/versions/2.0/infer'
    """
    number = quote(version, safe="").encode()
    if not path.startswith((b"/v1/", b"/v2/")):
        return path + b"/" + number
    _, protocol, models, model, *rest = path.split(b"/")
    name, colon, verb = model.partition(b":")  # a name's own would be encoded
    parts = (b"", protocol, models, name, b"versions", number + colon + verb, *rest)
    return b"/".join(parts)


def metadata(name: str, versions: list[str], contract: Contract, advice: object = None) -> Reply:
    """What a model takes and gives; an axis of any size is -1.

    The protocol has no place for sizes that must be multiples of a number: they are `parameters`.
    So is what a request looks like whose handler takes no tensors (`advice`), but a text.
    """
    parameters: dict[str, object] = {"steps": contract.steps} if contract.steps else {}
    if advice is not None:
        contract, parameters = replace(contract, inputs=(), outputs=()), {"expects": advice}
    facts = {
        "name": name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(spec) for spec in contract.inputs],
        "outputs": [_tensor(spec) for spec in contract.outputs],
        **({"parameters": parameters} if parameters else {}),
    }
    return Reply(orjson.dumps(facts))


def _tensor(spec: TensorSpec) -> dict[str, object]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": kserve.datatype(spec), "shape": shape}


def server(version: str) -> Reply:
    """The server's own metadata."""
    facts = {"name": "marship", "version": version, "extensions": ["binary_tensor_data"]}
    return Reply(orjson.dumps(facts))
