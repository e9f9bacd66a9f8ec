"""HTTP and values of a typed client: the standard library and NumPy, nothing else."""

import dataclasses
import io
import json
import ssl
import struct
import threading
import time
import types
import wave
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPMessage, HTTPResponse, HTTPSConnection
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlencode, urlsplit

import numpy as np
import numpy.typing as npt

from marship.client.typed.retries import RETRY_S, Retries
from marship.client.typed.tensors import Array, packed, unpacked

T = TypeVar("T")
JSON_TYPE, OCTETS_TYPE, LINES_TYPE = (
    "application/json",
    "application/octet-stream",
    "application/jsonl",
)
LENGTH_HEADER = "Inference-Header-Content-Length"
_OK, _LARGEST, _RGB, _COLOUR = 200, 32_767, 3, 2


class ServiceError(Exception):
    """A response that is an error.

    Attributes:
        status: Of HTTP.
        code: What is wrong, for programs: branch on it, never on the message.
        message: The same for people.
        retry_after_s: When to send it again, if the response says so.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_s = retry_after_s


class TypedConnection:
    """A connection to the server; it is kept, and made again where it was lost.

    Several threads may share it; their requests go one after another. What was refused because
    the server is busy or away is sent again; what may have been answered is not.

    Args:
        url: The direct address, such as http://127.0.0.1:8079.
        token: The inference token; empty where the server has none.
        timeout_s: How long to wait for the next bytes.
        retry_s: For how long to send again what was refused; 0 is not at all.
        context: Certificates to trust for https; None is the system's.

    Raises:
        ValueError: The URL is of no server.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        timeout_s: float = 60.0,
        retry_s: float = RETRY_S,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._parts, self._timeout_s, self._context = urlsplit(url), timeout_s, context
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname:
            raise ValueError(f"url must be such as http://127.0.0.1:8079, got {url!r}.")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._line: HTTPConnection | None = None
        self._retry_s, self._has_met = retry_s, False
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._line is not None:
                self._line.close()
                self._line = None

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str], query: Mapping[str, object]
    ) -> tuple[bytes, HTTPMessage]:
        """The body and the headers of the response to a request.

        Raises:
            ServiceError: It is an error.
            OSError: The server cannot be reached.
        """
        target = self._target(path, query)
        return self._retried(lambda: self._post(target, body, headers))

    def _post(
        self, target: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[bytes, HTTPMessage]:
        with self._lock:
            try:
                response = self._kept(target, body, headers)
                data = response.read()
            except BaseException:
                self.close()  # or the next request would be given the rest of this response
                raise
        if response.status != _OK:
            raise _refusal(response, data)
        return data, response.headers

    def _retried(self, ask: Callable[[], T]) -> T:
        """What `ask` returns, once the server is neither busy nor away."""
        retries = Retries(self._retry_s)
        while True:
            try:
                return ask()
            except ConnectionRefusedError:
                # one that never was there is not waited for
                if not self._has_met or (pause := retries.after_loss()) is None:
                    raise
            except ServiceError as error:
                pause = retries.after(error.status, error.code, error.retry_after_s)
                if pause is None:
                    raise
            time.sleep(pause)

    def _target(self, path: str, query: Mapping[str, object]) -> str:
        given = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in query.items()
            if value is not None
        }
        return self._parts.path.rstrip("/") + path + (f"?{urlencode(given)}" if given else "")

    def _kept(self, target: str, body: bytes, headers: Mapping[str, str]) -> HTTPResponse:
        """The response on the connection that is kept, or on a new one where it had ended."""
        if self._line is not None:
            try:
                return self._send(self._line, target, body, headers)
            except ConnectionError:  # no byte of a response came: it had ended meanwhile
                self.close()
        self._line = self._new_line()
        return self._send(self._line, target, body, headers)

    def _new_line(self) -> HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return HTTPSConnection(host, port, timeout=self._timeout_s, context=self._context)
        return HTTPConnection(host, port, timeout=self._timeout_s)

    def _send(
        self, line: HTTPConnection, target: str, body: bytes, headers: Mapping[str, str]
    ) -> HTTPResponse:
        line.request("POST", target, body, {**self._headers, **headers})
        response = line.getresponse()
        self._has_met = True
        return response

    def ask(
        self, path: str, body: bytes, content_type: str, query: Mapping[str, object] | None = None
    ) -> Any:
        """The response in JSON."""
        return json.loads(self.post(path, body, {"Content-Type": content_type}, query or {})[0])

    def ask_json(self, path: str, value: Mapping[str, object]) -> Any:
        """The response in JSON to a request in JSON, without the fields that are None."""
        given = {name: plain(one) for name, one in value.items() if one is not None}
        return self.ask(path, json.dumps(given).encode(), JSON_TYPE)

    def lines(self, path: str, body: bytes) -> Iterator[Any]:
        """The values of a response in JSON lines, each as it comes, on a connection of its own."""
        target = self._target(path, {})
        with closing(self._new_line()) as connection:
            for line in self._retried(lambda: self._streamed(connection, target, body)):
                value = json.loads(line)
                if "code" in value and "message" in value:
                    raise ServiceError(_OK, value["code"], value["message"])
                yield value

    def _streamed(self, connection: HTTPConnection, target: str, body: bytes) -> HTTPResponse:
        connection.close()  # after a refusal; the next request opens it
        headers = {"Content-Type": OCTETS_TYPE, "Accept": LINES_TYPE}
        response = self._send(connection, target, body, headers)
        if response.status != _OK:
            raise _refusal(response, response.read())
        return response

    def infer(
        self,
        path: str,
        inputs: Mapping[str, Array],
        datatypes: Mapping[str, str],
        outputs: Collection[str],
    ) -> dict[str, Array]:
        """The output tensors for input tensors, both as raw bytes (Open Inference Protocol).

        Raises:
            ServiceError: The response is an error.
            TypeError: An input would lose values in the model's type, or the model has other
                outputs.
        """
        parts = {name: packed(name, one, datatypes[name]) for name, one in inputs.items()}
        entries = [
            {
                "name": name,
                "shape": list(np.shape(inputs[name])),
                "datatype": datatypes[name],
                "parameters": {"binary_data_size": len(part)},
            }
            for name, part in parts.items()
        ]
        head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
        headers = {"Content-Type": OCTETS_TYPE, LENGTH_HEADER: str(len(head))}
        data, returned = self.post(path, b"".join([head, *parts.values()]), headers, {})
        length = int(returned.get(LENGTH_HEADER) or 0)
        found: dict[str, Array] = {}
        place = length or len(data)
        for entry in json.loads(data[:place])["outputs"]:
            size = entry["parameters"]["binary_data_size"]
            part = data[place : place + size]
            found[entry["name"]] = unpacked(part, entry["datatype"]).reshape(entry["shape"])
            place += size
        if missing := set(outputs) - found.keys():
            raise TypeError(
                f"the model must have the output {min(missing)}, got {', '.join(found)}. Write "
                "this client again with marship client."
            )
        return found


def _refusal(response: HTTPResponse, body: bytes) -> ServiceError:
    text = response.headers.get("Retry-After", "")
    after_s = float(text) if text.isascii() and text.isdigit() else None
    try:
        value = json.loads(body)
        return ServiceError(response.status, str(value["code"]), str(value["message"]), after_s)
    except (ValueError, KeyError, TypeError):
        said = body[:300].decode(errors="replace")
        return ServiceError(response.status, "unknown", said, after_s)


def picture_bytes(picture: bytes | npt.NDArray[np.uint8]) -> bytes:
    """A picture as a file: bytes as they are, pixels of shape (height, width, 3) as PNG.

    Source: PNG (W3C, third edition), 11.2 and 12.4; every row has filter type 0.
    """
    if isinstance(picture, bytes):
        return picture
    if picture.dtype != np.uint8 or picture.ndim != _RGB or picture.shape[2] != _RGB:
        raise TypeError(
            f"a picture must be uint8[height, width, 3], got {picture.dtype}{list(picture.shape)}."
        )
    height, width = picture.shape[:2]
    rows = np.zeros((height, 1 + _RGB * width), np.uint8)
    rows[:, 1:] = picture.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, _COLOUR, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def recording_bytes(recording: bytes | npt.NDArray[np.floating[Any]], rate: int) -> bytes:
    """A recording as a file: bytes as they are, mono samples from -1 to 1 as WAV of 16 bits."""
    if isinstance(recording, bytes):
        return recording
    samples = np.clip(np.asarray(recording, np.float64).reshape(-1), -1, 1)
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(samples * _LARGEST).astype("<i2").tobytes())
    return stream.getvalue()


def plain(value: object) -> Any:
    """A value that JSON can hold: arrays as lists."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def decode(kind: Any, value: Any) -> Any:
    """A JSON value as a dataclass, an array or a plain value.

    Args:
        kind: The type, as an annotation has it.
        value: The value.

    Raises:
        TypeError: It is of another type.
    """
    form, parts = get_origin(kind), get_args(kind)
    if form in (Union, types.UnionType):
        return _decoded_as_one_of(parts, value)
    if kind is Any or form is Literal:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _decoded(kind, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if form is None and isinstance(kind, type) and isinstance(value, kind):
        return value
    return _decoded_each(form, parts, value)


def _decoded_each(form: Any, parts: tuple[Any, ...], value: Any) -> Any:
    if form is np.ndarray and isinstance(value, list):
        return np.array(value, get_args(parts[1])[0])
    if form is list and isinstance(value, list):
        return [decode(parts[0], one) for one in value]
    if form is dict and isinstance(value, dict):
        return {name: decode(parts[1], one) for name, one in value.items()}
    raise TypeError(f"a response must hold {form}, got {value!r:.80}.")


def _decoded(kind: Any, value: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    names = {
        field.name: field.metadata.get("name", field.name) for field in dataclasses.fields(kind)
    }
    found = {own: decode(hints[own], value[name]) for own, name in names.items() if name in value}
    return kind(**found)


def _decoded_as_one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        try:
            return decode(kind, value)
        except (TypeError, ValueError):
            continue
    raise TypeError(f"a response must hold one of {kinds}, got {value!r:.80}.")
