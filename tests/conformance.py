"""Requests that every host must answer alike: TorchServe, direct, Ray, and a container.

`CASES` is the list, `ask` sends one to a host, and `comparable` is what must be the same of its
response. A host serves `lin-1.mar` of `versions.write_versions` under its own name.
"""

import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np

NAME, VERSION = "lin", "1"
ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
LIMIT_BYTES = 1 << 24
"""The largest request, as each host is started in tests."""
LONGEST_ID = 200
"""Hosts make up one in place of a longer one."""

JSON, NPY, BINARY = "application/json", "application/x-npy", "application/octet-stream"
_HEADERS = ("content-type", "allow", "retry-after", "www-authenticate", "x-request-id")
_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Case:
    """A request.

    Attributes:
        name: What it shows.
        path: With its query.
        body: The bytes.
        kind: The body's content type; empty sends none.
        headers: Further ones.
        method: The method.
        status: What every host answers with.
        is_model: Whether the archive itself answers: then TorchServe's own address does alike.
        has_token: Whether the token is sent.
        stated: A content length that the client states and does not send.
        is_chunked: Whether the body comes in chunks, without a length.
    """

    name: str
    path: str = f"/predictions/{NAME}"
    body: bytes = b""
    kind: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    status: int = 200
    is_model: bool = True
    has_token: bool = True
    stated: int | None = None
    is_chunked: bool = False


@dataclass(frozen=True)
class Host:
    """Where requests go.

    Attributes:
        url: Its address.
        token: For predictions; None where the host asks for none.
    """

    url: str
    token: str | None


@dataclass(frozen=True)
class Answer:
    """A response: header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _npy(value: object, dtype: str = "float32") -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(value, dtype))
    return file.getvalue()


def _v2(rows: object, **more: object) -> dict[str, Any]:
    tensor = {"name": "input", "shape": [2, 3], "datatype": "FP32", "data": rows}
    return {"inputs": [tensor], **more}


def _raw() -> tuple[bytes, dict[str, str]]:
    """Two rows as raw tensors (Open Inference Protocol, binary tensor data extension)."""
    tensor = {"name": "input", "shape": [2, 3], "datatype": "FP32"}
    head = _json({"inputs": [{**tensor, "parameters": {"binary_data_size": 24}}]})
    return head + np.asarray(ROWS, "<f4").tobytes(), {_LENGTH: str(len(head))}


def _form(*fields: tuple[str, str, bytes]) -> tuple[bytes, str]:
    """A multipart form of name, content type and bytes (RFC 7578)."""
    lines = []
    for name, kind, data in fields:
        lines += [b"--limit", f'content-disposition: form-data; name="{name}"'.encode()]
        lines += [f"content-type: {kind}".encode(), b"", data]
    return b"\r\n".join([*lines, b"--limit--", b""]), "multipart/form-data; boundary=limit"


_GOOD = _json({"input": ROWS})
_RAW, _RAW_HEADERS = _raw()
_FORM, _FORM_KIND = _form(("body", JSON, _GOOD))
_TWO, _TWO_KIND = _form(("body", JSON, _GOOD), ("more", "text/plain", b"1"))
V1, V2 = f"/v1/models/{NAME}", f"/v2/models/{NAME}"

_BODIES = (
    Case("JSON by name", body=_GOOD),
    Case("JSON rows", body=_json(ROWS)),
    Case("one row", body=_json(ROWS[:1])),
    Case("a row alone", body=_json(ROWS[0]), status=400),
    Case("no rows", body=_json({"input": []}), status=400),
    Case("a version", f"/predictions/{NAME}/{VERSION}", _GOOD),
    Case("a type with parameters", body=_GOOD, kind="application/json; charset=utf-8"),
    Case("a request id", body=_GOOD, headers={"X-Request-Id": "conformance-1"}),
    Case("in chunks", body=_GOOD, is_chunked=True),
    Case("npy", body=_npy(ROWS), kind=NPY),
    Case("npy of another type", body=_npy(ROWS, "float64"), kind=NPY, status=400),
    Case("a form", body=_FORM, kind=_FORM_KIND),
    Case("a form of two fields", body=_TWO, kind=_TWO_KIND),
    Case("gzip", body=gzip.compress(_GOOD, mtime=0), headers={"Content-Encoding": "gzip"}),
    Case("KServe v2 at predictions", body=_json(_v2(ROWS, id="7"))),
    Case("KServe v1 at predictions", body=_json({"instances": ROWS})),
    Case("as large as may be", body=b" " * (LIMIT_BYTES - len(_GOOD)) + _GOOD),
    Case("a large response", body=_npy(np.zeros((600_000, 3))), kind=NPY),
)
_BAD = (
    Case("no body", status=400),
    Case("bad JSON", body=b'{"input": [[1, 2', status=400),
    Case("JSON that is not UTF-8", body=b'{"input": "\xff"}', status=400),
    Case("another name", body=_json({"inpt": ROWS}), status=400),
    Case("too few columns", body=_json({"input": [[1.0, 2.0]]}), status=400),
    Case("ragged rows", body=_json({"input": [[1.0, 2.0, 3.0], [4.0]]}), status=400),
    Case("text for numbers", body=_json({"input": [["a", "b", "c"]]}), status=400),
    Case("not finite", body=b'{"input": [[1e999, 2, 3]]}', status=400),
    Case("null", body=b"null", status=400),
    Case("damaged npy", body=_npy(ROWS)[:-3], kind=NPY, status=400),
    Case("npy of another shape", body=_npy([[1.0]]), kind=NPY, status=400),
    Case("gzip that is none", body=_GOOD, headers={"Content-Encoding": "gzip"}, status=400),
    Case("an unknown encoding", body=_GOOD, headers={"Content-Encoding": "lzw"}, status=415),
    Case("an unknown type", body=_GOOD, kind="image/png", status=415),
)
_KSERVE = (
    Case("v2", f"{V2}/infer", _json(_v2(ROWS))),
    Case("v2 of a version", f"{V2}/versions/{VERSION}/infer", _json(_v2(ROWS, id="a"))),
    Case("v2 raw tensors", f"{V2}/infer", _RAW, BINARY, _RAW_HEADERS),
    Case("v2 of another type", f"{V2}/infer", _json({"inputs": [{}]}), status=400),
    Case("v2 bad JSON", f"{V2}/infer", b"{", status=400),
    Case("v2 metadata", V2, method="GET"),
    Case("v2 metadata without a body", V2, method="HEAD"),
    Case("v2 metadata of a version without a body", f"{V2}/versions/{VERSION}", method="HEAD"),
    Case("v2 ready", f"{V2}/ready", method="GET"),
    Case("v2 ready without a token", f"{V2}/ready", method="GET", has_token=False),
    Case("v2 server", "/v2", method="GET"),
    Case("v2 live", "/v2/health/live", method="GET", has_token=False),
    Case("v2 server ready", "/v2/health/ready", method="GET", has_token=False),
    Case("v1", f"{V1}:predict", _json({"instances": ROWS})),
    Case("v1 of a version", f"{V1}/versions/{VERSION}:predict", _json({"instances": ROWS})),
    Case("v1 without instances", f"{V1}:predict", _json({"rows": ROWS}), status=400),
    Case("v1 ready", V1, method="GET"),
)
_AROUND = (
    Case("no token", body=_GOOD, has_token=False, status=401),
    Case("no token for a bad body", body=b"{", has_token=False, status=401),
    Case("an unknown model", "/predictions/none", _GOOD, status=404),
    Case("an unknown version", f"/predictions/{NAME}/9", _GOOD, status=404),
    Case("an unknown model by v2", "/v2/models/none/infer", _GOOD, status=404),
    Case("an unknown path", "/elsewhere", _GOOD, status=404),
    Case("another method", body=_GOOD, method="DELETE", status=405),
    Case("GET without anything", method="GET", status=405),
    Case("OPTIONS", method="OPTIONS", status=204),
    Case("other expectations", body=_GOOD, headers={"Expect": "much"}, status=417),
    Case("an empty id", body=_GOOD, headers={"X-Request-Id": ""}),
    Case("a long id", body=_GOOD, headers={"X-Request-Id": "7" * 3000}),
    Case("an id of Latin-1", body=_GOOD, headers={"X-Request-Id": "\xe9"}),
    Case("Ray's own headers", body=_GOOD, headers={"Serve-Multiplexed-Model-Id": "\xe9"}),
    Case("explanations", f"/explanations/{NAME}", _GOOD, status=501),
    Case("too large", stated=LIMIT_BYTES + 1, status=413),
    Case("ping", "/ping", method="GET", has_token=False),
)
CASES = (
    *(_BODIES + _BAD),
    *(Case(**{**vars(case), "is_model": False}) for case in _KSERVE + _AROUND),
)


def ask(host: Host, case: Case) -> Answer:
    """Send a request to a host."""
    parts = urlsplit(host.url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    line = kind(str(parts.hostname), parts.port, timeout=30)
    headers = {"Content-Type": case.kind} if case.kind and case.method != "GET" else {}
    if case.has_token and host.token is not None:
        headers["Authorization"] = f"Bearer {host.token}"
    headers |= case.headers
    try:
        if case.stated is not None:
            line.putrequest(case.method, case.path)
            for name, value in {**headers, "Content-Length": str(case.stated)}.items():
                line.putheader(name, value)
            line.endheaders()
        elif case.is_chunked:
            line.request(case.method, case.path, iter([case.body]), headers, encode_chunked=True)
        else:
            line.request(case.method, case.path, case.body or None, headers)
        got = line.getresponse()
        return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
    finally:
        line.close()


def comparable(case: Case, answer: Answer) -> dict[str, Any]:
    """What must be the same on every host.

    Times and dates are not, nor how a response is framed, nor ids that a host has made up.
    """
    names = [name for name in _HEADERS if name in answer.headers]
    if not 0 < len(case.headers.get("X-Request-Id", "")) <= LONGEST_ID:
        names = [name for name in names if name != "x-request-id"]
    return {
        "status": answer.status,
        "headers": {name: answer.headers[name] for name in names},
        "has_id": "x-request-id" in answer.headers,
        "has_own_id": answer.headers.get("x-request-id") == case.headers.get("X-Request-Id"),
        "has_timing": "server-timing" in answer.headers,
        "body": answer.body,
    }
