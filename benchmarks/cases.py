"""The cases: a model with random weights, and one request for it."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson
from networks import (
    write_encoder,
    write_means,
    write_mlp,
    write_recommender,
    write_resnet18,
    write_resnet18_int8,
)

from marship.contract import Arrays

MEDIA_TYPES = {"json": "application/json", "npy": "application/x-npy"}
SEED = 0


@dataclass(frozen=True, slots=True)
class Case:
    """A model, a request, and how many clients send it.

    Attributes:
        name: As `--cases` takes it.
        title: What a reader sees.
        write: Writes the ONNX file.
        inputs: Makes the request's tensors, one row each.
        form: Format of request and response: json or npy.
        clients: Connections at the same time, smallest first.
        busy: The number of clients at which each server's number of workers is chosen.
        batch: Largest batch, for servers that batch.
    """

    name: str
    title: str
    write: Callable[[Path], None]
    inputs: Callable[[np.random.Generator], Arrays]
    form: str = "json"
    clients: tuple[int, ...] = (1, 4, 16, 64)
    busy: int = 64
    batch: int = 32


@dataclass(frozen=True, slots=True)
class CaseFiles:
    """A case's files: the same model and request for every server, and the expected outputs.

    Attributes:
        case: Which one.
        model: The ONNX file.
        body: The request.
        kserve: The same tensors as KServe v2 JSON, for MLServer.
        wanted: The outputs of bare ONNX Runtime.
    """

    case: Case
    model: Path
    body: Path
    kserve: Path
    wanted: Arrays


def prepare(case: Case, folder: Path) -> CaseFiles:
    """Write a case's model and request, and run them on bare ONNX Runtime."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"{case.name.replace('-', '_')}.onnx"
    case.write(model)
    inputs = case.inputs(np.random.default_rng(SEED))
    body = folder / f"request.{case.form}"
    body.write_bytes(encode(inputs, case.form))
    kserve = folder / "request.kserve.json"
    kserve.write_bytes(encode_kserve(inputs))
    return CaseFiles(case, model, body, kserve, run_bare(model, inputs))


def run_bare(model: Path, inputs: Arrays) -> Arrays:
    """The outputs of ONNX Runtime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def encode(tensors: Arrays, form: str) -> bytes:
    """The bytes of a request."""
    if form == "json":
        return orjson.dumps(tensors, option=orjson.OPT_SERIALIZE_NUMPY)
    (array,) = tensors.values()
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def encode_kserve(tensors: Arrays) -> bytes:
    """A request of the Open Inference Protocol, version 2, REST."""
    types = {"float32": "FP32", "int64": "INT64"}
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": types[array.dtype.name],
            "data": array.ravel(),
        }
        for name, array in tensors.items()
    ]
    return orjson.dumps({"inputs": inputs}, option=orjson.OPT_SERIALIZE_NUMPY)


def decode(body: bytes, form: str, names: list[str]) -> Arrays:
    """The tensors of a response, in whichever format the server sends."""
    if form == "npy":
        return {names[0]: np.load(io.BytesIO(body))}
    value = orjson.loads(body)
    if isinstance(value, dict) and isinstance(value.get("outputs"), list):
        return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in value["outputs"]}
    if not isinstance(value, dict):
        return {names[0]: np.array(value)}
    return {name: np.array(value[name]) for name in names}


def _floats(*shape: int) -> Callable[[np.random.Generator], Arrays]:
    return lambda rng: {"input": rng.standard_normal((1, *shape)).astype(np.float32)}


def _history(rng: np.random.Generator) -> Arrays:
    """50 events of one person: films, ratings and times."""
    return {
        "items": rng.integers(1, 1683, (1, 50)),
        "ratings": rng.integers(1, 6, (1, 50)).astype(np.float32),
        "times": np.sort(rng.integers(874_724_710, 893_286_638, (1, 50))),
    }


def _tokens(rng: np.random.Generator) -> Arrays:
    return {"input": rng.integers(0, 30_522, (1, 64))}


_IMAGE = _floats(3, 224, 224)
_MORE = (1, 4, 8, 16, 64)
CASES = {
    case.name: case
    for case in (
        Case("mlp", "MLP 10-10-1, JSON", write_mlp, _floats(10)),
        Case("tensor-npy", "1x3x224x224 float32, npy", write_means, _IMAGE, "npy", _MORE, 8),
        Case(
            "tensor-json", "1x3x224x224 float32, JSON", write_means, _IMAGE, clients=_MORE, busy=8
        ),
        Case("resnet18", "ResNet-18 float32, npy", write_resnet18, _IMAGE, "npy", _MORE, 8),
        Case("resnet18-int8", "ResNet-18 int8, npy", write_resnet18_int8, _IMAGE, "npy", _MORE, 8),
        Case("recommender", "recommender, 50 events, JSON", write_recommender, _history),
        Case("encoder", "text encoder 6 x 384, 64 tokens, JSON", write_encoder, _tokens),
    )
}
