"""Every invalid request gets a JSON error with the right status, and the worker survives."""

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from marship import Client
from marship.engines.torchserve.server import Server
from marship.packaging.step import PackageSettings, package
from marship.serving.formats import codec, kserve
from posting import Post, endpoint

JSON, NPY, OCTETS = codec.JSON_TYPE, codec.NPY_TYPE, codec.OCTETS_TYPE
NUMBERS = codec.write_npy(np.ones((1, 3), np.float32))


@pytest.fixture(scope="module")
def post(linear_onnx: Path, store: Path, client: Client, running: Server) -> Iterator[Post]:
    """Post to the linear model over one connection; in the end its worker is the first one."""
    settings = PackageSettings(model_store=store, name="sturdy", profile="throughput")
    (worker,) = client.register(package(linear_onnx, settings).name).workers
    url, token = endpoint(running, "sturdy")
    with requests.Session() as session:
        session.headers.update(token)

        def send(body: bytes, content_type: str = JSON, **headers: str) -> requests.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return session.post(
                url, body, headers={"Content-Type": content_type, **named}, timeout=20
            )

        yield send
    assert client.describe("sturdy")[0].workers == (worker,)


def claim(shape: str) -> bytes:
    """An npy file whose header claims another shape than its data has."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }"
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(10)


def kserve_body(**changes: object) -> tuple[bytes, str]:
    """A raw KServe request with something changed in its description; and its JSON's length."""
    described = {"name": "input", "datatype": "FP32", "shape": [1, 3]}
    entry = {**described, "parameters": {"binary_data_size": 12}, **changes}
    text = json.dumps({"inputs": [entry]}).encode()
    return text + bytes(12), str(len(text))


BAD = {
    "no body": (b"", JSON, 400, "malformed"),
    "JSON that ends": (b'{"input": [[1, 2', JSON, 400, "malformed"),
    "JSON that goes on": (b"[[1, 2, 3]]]", JSON, 400, "malformed"),
    "no UTF-8": (b'{"input": "\xff"}', JSON, 400, "malformed"),
    "NaN": (b"[[NaN, 1, 2]]", JSON, 400, "malformed"),
    "infinity": (b"[[1e999, 1, 2]]", JSON, 400, "malformed"),
    "too large for float32": (b"[[1e39, 1, 2]]", JSON, 400, "invalid_input"),
    "NaN in npy": (codec.write_npy(np.full((1, 3), np.nan, np.float32)), NPY, 400, "invalid_input"),
    "infinity in npy": (
        codec.write_npy(np.full((1, 3), np.inf, np.float32)),
        NPY,
        400,
        "invalid_input",
    ),
    "text": (b'[["1", "2", "3"]]', JSON, 400, "invalid_input"),
    "truth": (b"[[true, true, true]]", JSON, 400, "invalid_input"),
    "doubles in npy": (codec.write_npy(np.ones((1, 3))), NPY, 400, "invalid_input"),
    "another shape": (b"[[1, 2]]", JSON, 400, "invalid_input"),
    "1,000 levels": (b"[" * 1000 + b"]" * 1000, JSON, 400, None),
    "100,000 levels": (b"[" * 100_000 + b"]" * 100_000, JSON, 400, None),
    "npy that ends": (NUMBERS[:-1], NPY, 400, "malformed"),
    "npy that goes on": (NUMBERS + b"x", NPY, 400, "malformed"),
    "npy of its magic": (NUMBERS[:6], NPY, 400, "malformed"),
    "npy that claims 1 GB": (claim("(250000000,)"), NPY, 400, "malformed"),
    "npy that claims more than there is": (
        claim("(9999999999999999999999,)"),
        NPY,
        400,
        "malformed",
    ),
    "npy of minus one": (claim("(-1,)"), NPY, 400, "malformed"),
    "a picture": (b"\xff\xd8\xff\xe0", "image/jpeg", 415, "unsupported_media"),
    "a form": (b"a=1", "application/x-protobuf", 415, "unsupported_media"),
}


def check(answer: requests.Response, status: int, code: str | None) -> None:
    """A JSON error of ours, with the status and the code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == JSON
    assert answer.json()["message"]
    assert code is None or answer.json()["code"] == code


@pytest.mark.parametrize("case", BAD)
def test_a_bad_body_is_a_clear_error(post: Post, case: str) -> None:
    """Its status and code are right, and the next request succeeds."""
    body, content_type, status, code = BAD[case]
    check(post(body, content_type), status, code)
    assert post(b"[[1, 2, 3]]").json() == [[16.0, 22.0]]


@pytest.mark.parametrize("length", ["-1", "0", "7", "999999999999", "abc"])
def test_a_wrong_header_length_is_a_clear_error(post: Post, length: str) -> None:
    """KServe's length of the JSON is checked against what there is."""
    body, _ = kserve_body()
    check(post(body, OCTETS, Inference_Header_Content_Length=length), 400, "malformed")
    assert post(b"[[1, 2, 3]]").json() == [[16.0, 22.0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"binary_data_size": 10**9}},
        {"parameters": {"binary_data_size": 11}},
        {"parameters": {"binary_data_size": "12"}},
        {"shape": [10**9, 3]},
        {"shape": [-1, 3]},
        {"datatype": "FP64"},
    ],
)
def test_wrong_claims_about_raw_tensors_are_clear_errors(
    post: Post, changes: dict[str, object]
) -> None:
    """A size, shape or type that the bytes do not have is a 400."""
    body, length = kserve_body(**changes)
    check(post(body, OCTETS, Inference_Header_Content_Length=length), 400, None)


def test_raw_tensors_in_requests_and_responses(post: Post) -> None:
    """KServe's binary extension over HTTP: raw in, raw out."""
    text = json.dumps(
        {
            "inputs": [
                {
                    "name": "input",
                    "datatype": "FP32",
                    "shape": [1, 3],
                    "parameters": {"binary_data_size": 12},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    raw = np.array([1, 2, 3], "<f4").tobytes()
    answer = post(text + raw, OCTETS, Inference_Header_Content_Length=str(len(text)))
    length = int(answer.headers[kserve.LENGTH_HEADER])
    assert np.frombuffer(answer.content[length:], "<f4").tolist() == [16.0, 22.0]


def test_a_body_over_the_limit_is_413(post: Post) -> None:
    """TorchServe's frontend refuses it, and keeps running."""
    assert post(b" " * 20_000_000).status_code == 413
    assert post(b"[[1, 2, 3]]").json() == [[16.0, 22.0]]


@pytest.mark.parametrize(("name", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_gets_the_same_response(
    post: Post, name: str, encode: Callable[[bytes], bytes]
) -> None:
    """By TorchServe's own frontend, or by the handler."""
    plain = b"[[1.0, 2.0, 3.0]]"
    assert post(encode(plain), Content_Encoding=name).content == post(plain).content


def test_a_body_in_an_unknown_encoding_is_415(post: Post) -> None:
    """The message says which are known."""
    answer = post(b"\x0b\x05\x80[[1, 2, 3]]\x03", Content_Encoding="br")
    assert answer.status_code == 415
    assert "gzip, zstd, deflate or identity" in answer.json()["message"]
