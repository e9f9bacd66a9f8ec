"""Requests as people send them, at TorchServe's own address and at the direct one."""

import gzip
import json
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.http as triton
from backports import zstd

import marship
from directly import until
from marship.client import Client
from marship.engines.torchserve.server import Server
from marship.errors import ScaledToZeroError
from marship.serving.formats import codec
from served import bearer, direct_address, serving
from versions import linear

ROW, RIGHT = [[1, 2, 3]], [[16, 22]]
BODY = json.dumps(ROW)
HANDLER = """
import orjson

from marship.serving.handler import OnnxHandler, Reply


class Told(OnnxHandler):
    def decode(self, request):
        self.seen = {"k": request.parameter("k"), "none": request.parameter("none")}
        return super().decode(request)

    def encode(self, outputs, state):
        return Reply(orjson.dumps(self.seen))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the linear model, as `lin`, as `idle`, and with a handler that tells."""
    folder = tmp_path_factory.mktemp("ways")
    store, own = folder / "store", folder / "told_handler.py"
    own.write_text(HANDLER)
    model = linear(folder / "lin.onnx", 1)
    for name, handler in (("lin", None), ("told", own), ("idle", None)):
        marship.package(
            model, marship.PackageSettings(name=name, model_store=store, handler=handler)
        )
    with serving(folder / "home", store) as started, Client(started.home.path) as client:
        for name in ("lin", "told", "idle"):
            client.register(f"{name}.mar", workers=1)
        yield started


@pytest.fixture(params=["torchserve", "direct"])
def base(request: pytest.FixtureRequest, server: Server) -> str:
    """Each address."""
    if request.param == "direct":
        return f"http://{direct_address(server)}"
    return server.record.inference_url


Ask = Callable[..., requests.Response]


@pytest.fixture
def ask(base: str, server: Server) -> Ask:
    """Post to a path of the address."""

    def post(data: object, path: str = "/predictions/lin", **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        headers = {"Authorization": bearer(server), **named}
        return requests.post(base + path, data, headers=headers, timeout=20)

    return post


@pytest.mark.parametrize(
    "body", [BODY, '{"input": [[1, 2, 3]]}', '{"t": "x=y&z=1%25"}', "true", '[["a+b"]]', '{"":"="}']
)
@pytest.mark.parametrize("flag", ["-d", "--data-binary"])
def test_curl_without_a_type_is_read_or_told_the_header(
    base: str, server: Server, flag: str, body: str
) -> None:
    """TorchServe takes it for a form; the direct address reads what is JSON."""
    words = ["curl", "-s", "-H", f"Authorization: {bearer(server)}", flag, body]
    done = subprocess.run(
        [*words, f"{base}/predictions/lin"], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    if base == server.record.inference_url:
        assert told["code"] == "unsupported_media"
        assert "Content-Type: application/json" in told["message"]
    else:
        assert told in (RIGHT, {"output": RIGHT}) or told["code"] == "invalid_input"


@pytest.mark.parametrize("name", ["body", "data", "input"])
def test_a_field_that_curl_encodes_is_read(base: str, server: Server, name: str) -> None:
    """`curl --data-urlencode`, whatever it calls the field."""
    words = ["curl", "-s", "-H", f"Authorization: {bearer(server)}"]
    words += ["--data-urlencode", f"{name}={BODY}", f"{base}/predictions/lin"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == RIGHT


@pytest.mark.parametrize("name", ["body", "data", "input"])
@pytest.mark.parametrize("kind", ["", ";type=application/json"])
def test_a_part_of_a_form_is_read(base: str, server: Server, name: str, kind: str) -> None:
    """`curl -F`, whatever it calls the part."""
    words = ["curl", "-s", "-H", f"Authorization: {bearer(server)}", "-F", f"{name}={BODY}{kind}"]
    done = subprocess.run(
        [*words, f"{base}/predictions/lin"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == RIGHT


COMPRESS = {"gzip": gzip.compress, "zstd": zstd.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("name", COMPRESS)
def test_a_compressed_body_is_read_with_its_header(ask: Ask, name: str) -> None:
    """JSON and npy."""
    for body, kind in (
        (BODY.encode(), codec.JSON_TYPE),
        (codec.write_npy(np.array(ROW, np.float32)), codec.NPY_TYPE),
    ):
        got = ask(COMPRESS[name](body), Content_Type=kind, Content_Encoding=name)
        assert got.status_code == 200, got.text


@pytest.mark.parametrize("name", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "kind", [codec.JSON_TYPE, codec.NPY_TYPE, codec.OCTETS_TYPE, "application/gzip"]
)
def test_a_compressed_body_without_its_header_is_told_it(ask: Ask, name: str, kind: str) -> None:
    """Whatever its type."""
    got = ask(COMPRESS[name](BODY.encode()), Content_Type=kind)
    assert (got.status_code, got.json()["code"]) == (400, "malformed")
    assert f"Content-Encoding: {name}" in got.json()["message"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("is_binary", [True, False])
def test_tritons_compressed_requests_are_read(
    server: Server, algorithm: str, is_binary: bool
) -> None:
    """Its client compresses raw tensors and JSON, and takes a plain response."""
    with triton.InferenceServerClient(direct_address(server)) as client:
        value = triton.InferInput("input", [1, 3], "FP32")
        value.set_data_from_numpy(np.array(ROW, np.float32), binary_data=is_binary)
        got = client.infer(
            "lin", [value], headers={"Authorization": bearer(server)},
            request_compression_algorithm=algorithm, response_compression_algorithm=algorithm,
        )  # fmt: skip
        assert got.as_numpy("output").tolist() == RIGHT


def test_raw_tensors_that_are_compressed_are_read(ask: Ask) -> None:
    """As Triton's client sends them, at both addresses."""
    described = {"name": "input", "datatype": "FP32", "shape": [1, 3]}
    text = json.dumps({"inputs": [{**described, "parameters": {"binary_data_size": 12}}]})
    body = gzip.compress(text.encode() + np.array(ROW, "<f4").tobytes())
    headers = {"Content_Encoding": "gzip", "Inference_Header_Content_Length": str(len(text))}
    got = ask(body, Content_Type=codec.OCTETS_TYPE, **headers)
    assert got.json()["outputs"][0]["data"] == [16, 22]


@pytest.mark.parametrize(
    "path", ["/explanations/lin", "/explanations/lin/1.0", "/v1/models/lin:explain"]
)
def test_an_explanation_is_no_prediction(ask: Ask, path: str) -> None:
    """501 with one line."""
    got = ask(BODY, path, Content_Type=codec.JSON_TYPE)
    assert (got.status_code, got.json()["code"]) == (501, "unsupported"), got.text


def test_no_header_makes_a_prediction_an_explanation(ask: Ask) -> None:
    """TorchServe marks explanations by a header; a client's own does not count."""
    assert ask(BODY, Content_Type=codec.JSON_TYPE, explain="True").json() == RIGHT


def test_kserve_v1_is_answered(ask: Ask) -> None:
    """By its own path, and as a form of a body."""
    body = json.dumps({"instances": ROW * 2})
    for path in ("/v1/models/lin:predict", "/predictions/lin"):
        got = ask(body, path, Content_Type=codec.JSON_TYPE)
        assert got.json() == {"predictions": RIGHT * 2}


def test_query_parameters_reach_a_handler_at_the_direct_address(
    ask: Ask, base: str, server: Server
) -> None:
    """As text, and the body stays the body; TorchServe drops them before a worker sees any."""
    got = ask(BODY, "/predictions/told?k=3%20%C3%A9&l=", Content_Type=codec.JSON_TYPE)
    has_query = base != server.record.inference_url
    assert got.json() == {"k": "3 é" if has_query else None, "none": None}


def test_a_field_of_a_form_is_a_parameter(ask: Ask) -> None:
    """At both addresses."""
    form = b"--b\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n"
    body = form % (b"body", BODY.encode()) + form % (b"k", "é".encode()) + b"--b--\r\n"
    got = ask(body, "/predictions/told", Content_Type="multipart/form-data; boundary=b")
    assert got.json() == {"k": "é", "none": None}


def test_a_model_scaled_to_none_is_said_at_once(server: Server) -> None:
    """To clients of either address, and to curl at the direct one."""
    home = server.home.path
    with Client(home) as client:
        client.scale("idle", 0)
        token = bearer(server).removeprefix("Bearer ")
        urls: dict[str, Any] = {
            "management_url": server.record.management_url,
            "management_token": json.loads(server.home.key_file.read_text())["management"]["key"],
            "inference_token": token,
        }
        own = Client(inference_url=server.record.inference_url, **urls)
        for one in (client, own):
            began = time.monotonic()
            with pytest.raises(ScaledToZeroError, match="marship scale idle 1"):
                one.predict("idle", ROW)
            assert time.monotonic() - began < 3
        own.close()

        def post() -> requests.Response:
            url = f"http://{direct_address(server)}/predictions/idle"
            return requests.post(
                url, BODY, headers={"Authorization": bearer(server)}, timeout=5
            )  # fmt: skip

        until(lambda: post().json()["code"] == "scaled_to_zero")  # it follows TorchServe
        assert post().status_code == 503
        client.scale("idle", 1)
        assert client.predict("idle", ROW) == RIGHT
