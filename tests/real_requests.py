"""What clients ask of a server with the models `lin` and `colours`, and what strangers may try."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from marship.serving.formats import codec
from mutants import Header, Request
from photos import colour

HOST: Header = (b"Host", b"localhost")
FORM = (b"Content-Type", b"multipart/form-data; boundary=marship")
JSON = (b"Content-Type", b"application/json")
TENSORS = {
    b"application/json": b"[[1, 2, 3], [4.5, 5, 6]]",
    b"application/json; charset=utf-8": b'{"input": [[1, 2, 3]]}',
    b"application/x-npy": codec.write_npy(np.ones((2, 3), np.float32)),
    b"application/x-www-form-urlencoded": b"input=1&k=2&name=three%20four",
    b"application/octet-stream": bytes(range(64)),
    b"text/json": b'{"inputs":[{"name":"input","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}',
}
BINARY = (
    b'{"inputs":[{"name":"input","shape":[1,3],"datatype":"FP32","parameters":'
    b'{"binary_data_size":12}}],"parameters":{"binary_data_output":true}}'
)
OTHER_WAYS = (
    b"/v2/models/lin/infer",
    b"/v1/models/lin:predict",
    b"/explanations/lin",
    b"/invocations?model_name=lin",
    b"/models/lin/invoke",
    b"/lin/predict",
    b"/wfpredict/lin",
)
LOOKS = (
    b"/models",
    b"/models?limit=1&next_page_token=0",
    b"/models/lin",
    b"/models/lin?customized=true",
    b"/models/lin/all",
    b"/models/colours/1.0",
    b"/v1/models/lin",
    b"/api-description",
)
DEEDS = (
    (b"POST", b"/models?url=lin-2.mar&model_name=lin&initial_workers=1"),
    (b"POST", b"/models?url=echo.mar"),
    (b"PUT", b"/models/lin?min_worker=3&max_worker=3"),
    (b"PUT", b"/models/colours/1.0/set-default"),
    (b"DELETE", b"/models/lin"),
    (b"DELETE", b"/models/colours/1.0"),
    (b"POST", b"/workflows?url=echo.war"),
    (b"DELETE", b"/workflows/echo"),
    (b"GET", b"/token?type=management"),
    (b"GET", b"/token?type=inference"),
)


def asked(door: str, token: bytes) -> Iterator[Request]:
    """Predictions in every form, and what else the inference port answers.

    Args:
        door: Where they go.
        token: That of inference.
    """
    one = Request(door, b"POST", b"/predictions/lin", (HOST,), token=b"Bearer " + token)
    one = replace(one, may_enter=True)
    for kind, body in TENSORS.items():
        yield replace(one, headers=(HOST, (b"Content-Type", kind)), body=body)
    length = (b"Inference-Header-Content-Length", b"%d" % len(BINARY))
    octets = (b"Content-Type", b"application/octet-stream")
    raw = BINARY + np.array([1, 2, 3], "<f4").tobytes()
    yield replace(one, headers=(HOST, octets, length), body=raw)
    picture = colour("red", 12, 10)
    colours = replace(one, target=b"/predictions/colours")
    for kind in ("PNG", "JPEG"):
        typed = (b"Content-Type", b"image/" + kind.lower().encode())
        yield replace(colours, headers=(HOST, typed), body=colour("red", 12, 10, kind=kind))
    for count in (1, 2):
        yield replace(colours, headers=(HOST, FORM), body=form(picture, count))
    versioned = replace(one, target=b"/predictions/lin/1", headers=(HOST, JSON), body=b"[[1,2,3]]")
    yield versioned
    for target in OTHER_WAYS:
        yield replace(versioned, target=target)
    yield replace(one, method=b"GET", target=b"/ping")
    yield replace(one, method=b"OPTIONS")


def form(picture: bytes, count: int) -> bytes:
    """A form with so many pictures, and a field."""
    part = b'--marship\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n'
    part += b"Content-Type: image/png\r\n\r\n" + picture + b"\r\n"
    field = b'--marship\r\nContent-Disposition: form-data; name="k"\r\n\r\n2\r\n--marship--\r\n'
    return part * count + field


def managed(door: str, token: bytes, wrong: bytes) -> Iterator[Request]:
    """What the management port answers: who may, looks; who may not, tries to do.

    Args:
        door: Where they go; through the proxy and the direct address no token helps.
        token: That of management.
        wrong: Another.
    """
    look = Request(door, b"GET", b"", (HOST,), token=b"Bearer " + token, reads=True)
    look = replace(look, may_enter=door == "management")
    for target in LOOKS:
        yield replace(look, target=target)
    predicts = door in ("proxy", "direct")  # a changed path may lead there, with its token
    for method, target in DEEDS:
        for given in (None, b"Bearer " + wrong):
            deed = Request(door, method, target, (HOST,), token=given)
            yield replace(deed, may_enter=predicts and given is not None)
    body = b'{"url": "echo.mar", "model_name": "sneaked", "initial_workers": 1}'
    yield Request(
        door,
        b"POST",
        b"/models",
        (HOST, JSON),
        body,
        token=b"Bearer " + wrong,
        may_enter=predicts,
    )


def measured(door: str) -> Iterator[Request]:
    """What the metrics port answers, to everybody."""
    for target in (b"/metrics", b"/metrics?name[]=ts_inference_requests_total"):
        yield Request(door, b"GET", target, (HOST,), may_enter=True)
