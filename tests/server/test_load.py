"""A worker serves what was packed or nothing, and every form of request travels over HTTP."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml

import marship
from marship import Client
from marship.engines.torchserve.server import Server
from marship.errors import LoadError
from marship.packaging.step import PackageSettings, package
from marship.serving.formats import codec

Change = Callable[[str, bytes], bytes]


def rewrite(archive: Path, change: Change) -> None:
    """Put an archive's members through `change(name, content)`."""
    with zipfile.ZipFile(archive) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(archive, "w") as sink:
        for name, content in members.items():
            sink.writestr(name, change(name, content))


def flip_a_weight(name: str, content: bytes) -> bytes:
    """Change the model's last byte."""
    return content[:-1] + bytes([content[-1] ^ 1]) if name == "model.onnx" else content


def remember_other_answers(name: str, content: bytes) -> bytes:
    """Move every golden output by one, as a host that computes otherwise would find them."""
    if name != "golden.npz":
        return content
    with np.load(io.BytesIO(content)) as golden:
        moved = {key: golden[key] + np.float32("/out/" in key) for key in golden.files}
    file = io.BytesIO()
    np.savez(file, **moved)
    return file.getvalue()


def ask_for_cuda(name: str, content: bytes) -> bytes:
    """Want a provider that the CPU build of ONNX Runtime does not have."""
    if name != "model-config.yaml":
        return content
    config = yaml.safe_load(content)
    config["marship"]["providers"] = ["cuda"]
    return yaml.safe_dump(config).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip_a_weight, "SHA-256"),
        (remember_other_answers, "golden case 0 .* got a difference of 1"),
        (ask_for_cuda, "provider cuda must be in the installed ONNX Runtime"),
    ],
)
def test_what_is_not_the_packed_model_is_not_served(
    linear_onnx: Path, store: Path, client: Client, change: Change, words: str
) -> None:
    """An altered file, other outputs, a missing provider: the worker reports the reason."""
    settings = PackageSettings(model_store=store, name=change.__name__)
    archive = package(linear_onnx, settings)
    rewrite(archive, change)
    with pytest.raises(LoadError, match=words):
        client.register(archive.name)
    assert change.__name__ not in [model.name for model in client.models()]


@pytest.fixture(scope="module")
def predictions(
    linear_onnx: Path, store: Path, client: Client, running: Server
) -> Callable[[bytes, str], requests.Response]:
    """Post to the linear model as any HTTP client would."""
    client.register(package(linear_onnx, PackageSettings(model_store=store, name="forms")).name)
    token = json.loads(running.home.key_file.read_text())["inference"]["key"]

    def post(body: bytes, content_type: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
        url = f"{running.record.inference_url}/predictions/forms"
        return requests.post(url, body, headers=headers, timeout=20)

    return post


KSERVE = {"id": "7", "inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32"}]}
KSERVE["inputs"][0]["data"] = [1, 2, 3]  # type: ignore[index]
FORMS = {
    "by name": (b'{"input": [[1, 2, 3]]}', b'{"output":[[16.0,22.0]]}'),
    "bare": (b"[[1, 2, 3]]", b"[[16.0,22.0]]"),
    "KServe v2": (
        json.dumps(KSERVE).encode(),
        (
            b'{"model_name":"forms","model_version":"1.0","outputs":[{"name":"output",'
            b'"shape":[1,2],"datatype":"FP32","data":[16.0,22.0]}],"id":"7"}'
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_json_forms_over_http(
    predictions: Callable[[bytes, str], requests.Response], form: str
) -> None:
    """Each format gets a response in the same format, with Content-Type and Server-Timing."""
    request, wanted = FORMS[form]
    answer = predictions(request, "application/json")
    assert (answer.status_code, answer.content) == (200, wanted)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Server-Timing"].startswith("decode;dur=")


def test_npy_over_http(predictions: Callable[[bytes, str], requests.Response]) -> None:
    """Npy in is npy out."""
    answer = predictions(codec.write_npy(np.array([[1, 2, 3]], np.float32)), codec.NPY_TYPE)
    assert answer.headers["Content-Type"] == codec.NPY_TYPE
    assert codec.read_npy(answer.content).tolist() == [[16.0, 22.0]]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"[[1, 2", "application/json", 400, "malformed"),
        (b"[[1, 2]]", "application/json", 400, "invalid_input"),
        (b"[[1, 2, NaN]]", "application/json", 400, "malformed"),
        (b"[[1, 2, 1e300]]", "application/json", 400, "invalid_input"),
        (b"\xff\xd8\xff", "image/jpeg", 415, "unsupported_media"),
        (codec.write_npy(np.zeros(9))[:-5], codec.NPY_TYPE, 400, "malformed"),
    ],
)
def test_bad_requests_over_http(
    predictions: Callable[[bytes, str], requests.Response],
    body: bytes,
    content_type: str,
    status: int,
    code: str,
) -> None:
    """A bad request gets its status and a JSON error that says what the model expects."""
    answer = predictions(body, content_type)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["expects"] == ["input: float32[batch, 3]"]


def test_a_worker_reads_through_the_buffer_and_sees_the_headers(
    linear_onnx: Path, store: Path, client: Client
) -> None:
    """On the known TorchServe the buffered transport is the one in use, headers included."""
    handler = Path(__file__).parent / "onnx_handlers" / "tell_handler.py"
    settings = PackageSettings(model_store=store, name="tell", handler=handler)
    client.register(package(linear_onnx, settings).name)
    answer = client.predict("tell", [[1, 2, 3]])
    assert answer["reader"] == "marship.serving.hosts.torchserve.worker"
    assert answer["agent"] == f"marship/{marship.__version__}"


def test_a_profile_can_be_chosen_when_a_model_is_registered(
    linear_onnx: Path, store: Path, client: Client
) -> None:
    """The archive's own profile holds unless register names another."""
    settings = PackageSettings(model_store=store, name="profiled", profile="throughput")
    archive = package(linear_onnx, settings).name
    packed = client.register(archive)
    client.unregister("profiled")
    chosen = client.register(archive, profile="latency")
    assert (packed.batch_size, packed.max_batch_delay_ms) == (32, 1)
    assert (chosen.batch_size, chosen.max_batch_delay_ms) == (1, 1)
