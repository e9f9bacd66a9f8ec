"""TorchServe's worker protocol, read through a buffer and answered in one piece.

The stock worker reads its socket twice for every name and value, and turns each request into
nested dicts and back. Here a whole message is read at once, only what is needed of it is
looked at, and the answers of a batch are joined once. The bytes are the same in both
directions (ts/protocol/otf_message_handler.py of TorchServe 0.12.0).

    message   "I", requests, int -1
    request   id, headers, int -1, parameters, int -1
    header    name, value
    parameter name, content type, value                  each text: int length, bytes

Integers are 4 bytes, big endian.
"""

import hashlib
import logging
import math
import select
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from socket import socket
from typing import Any

logger = logging.getLogger(__name__)

JSON_TYPE = "application/json"
KNOWN_VERSION = "0.12.0"
KNOWN_FILES = {
    "protocol/otf_message_handler.py": (
        "83e82dc62b4a95a362efe4518786c6b389b895b85acaf37721aaff042ec9989a"
    ),
    "service.py": "f18259269551299d25f4e9d2bdc916c8308c10233501df08196cc7cfa2d0d291",
    "model_service_worker.py": "3640d5ae3d03e229cc1980f8bfbb3642865cb49f9ead1769bf41a30aa4e75343",
}
"""SHA-256 of the files whose functions are replaced, or that call them."""

PREDICT, LOAD = b"I", b"L"
STREAM_HEADER = "ts_stream_next"
BUFFER_BYTES = 1 << 18
LARGE_BYTES = 1 << 16
"""A value of this size or more is handed out as a view of the buffer, not as a copy."""

SPIN_S = 4e-4
"""How long a worker that is asked again and again at once looks for the next message before it
sleeps. Waking costs the lone client of a small model half of its time."""

_INT = struct.Struct("!i")
_END = b"\xff\xff\xff\xff"  # -1; no UTF-8 text and no sane length holds these four bytes
_BODY_NAMES = ("body", "data")


@dataclass(slots=True)
class Request:
    """One request, as it came in.

    Attributes:
        body: The bytes; TorchServe's own reader may have parsed JSON already.
        name: Of the body: `body`, or the multipart field's.
        content_type: Of the body; empty where none was sent.
        fields: Query parameters and further multipart fields, by name; where one comes again, it
            is `<name>#2` and so on (TorchServe's own reader keeps the last only).
        id: TorchServe's, for its answer.
        raw_headers: As the protocol has them; `headers` reads them.
    """

    body: Any
    content_type: str = ""
    name: str = "body"
    fields: Mapping[str, Any] = field(default_factory=dict)
    id: bytes = b""
    raw_headers: bytes | Mapping[str, str] = b""

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers, names in lower case."""
        if isinstance(self.raw_headers, Mapping):
            return {name.lower(): value for name, value in self.raw_headers.items()}
        texts = []
        place = 0
        while place < len(self.raw_headers):
            (size,) = _INT.unpack_from(self.raw_headers, place)
            texts.append(self.raw_headers[place + 4 : place + 4 + size].decode("utf-8"))
            place += 4 + size
        return dict(zip([name.lower() for name in texts[::2]], texts[1::2], strict=True))

    def header(self, name: str) -> str | None:
        """One HTTP header, whatever its case; None where it was not sent."""
        raw = self.raw_headers
        if isinstance(raw, bytes) and name.lower().encode() not in raw.lower():
            return None  # most requests: none of their headers is read
        return self.headers.get(name.lower())


@dataclass(slots=True)
class Reply:
    """One answer, or a part of one that is streamed; an error is one too.

    Attributes:
        body: The bytes.
        content_type: Of the body.
        status: HTTP's.
        headers: Further ones.
        more: Whether more of the same answer follows.
    """

    body: bytes
    content_type: str = JSON_TYPE
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    more: bool = False

    def all_headers(self, timing: str) -> dict[str, str]:
        """With those that every answer has."""
        return {"content-type": self.content_type, "Server-Timing": timing, **dict(self.headers)}


class _IncompleteError(Exception):
    """The buffer ends before the message does; `size` bytes of it are needed at least."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Connection:
    """A worker's socket with what was read of it and not yet looked at.

    Args:
        sock: The socket, blocking.
        spins: Whether to look for a message for `SPIN_S` before sleeping, as long as the one
            before it came as soon as that.
    """

    def __init__(self, sock: socket, *, spins: bool = False) -> None:
        self._socket = sock
        self._spins = spins
        self._waited_s = math.inf  # for the last message
        self._readable = select.poll()
        if spins:
            self._readable.register(sock, select.POLLIN)
        self._buffer = bytearray(BUFFER_BYTES)
        self._start = self._end = 0
        self._is_lent = False  # somebody holds a view of the buffer

    def recv(self, size: int) -> bytes:
        """As `socket.recv`, for the stock readers of rare messages."""
        if self._start == self._end:
            if self._spins:
                self._look()
            self._fill(1)
        stop = min(self._end, self._start + size)
        found = bytes(self._buffer[self._start : stop])
        self._start = stop
        return found

    def batch(self) -> list[Request]:
        """The requests of the message whose command was just read."""
        requests: list[Request] = []
        while True:
            try:
                request, stop = parse(self._buffer, self._start, self._end)
            except _IncompleteError as more:
                self._fill(more.size)
                continue
            self._is_lent = self._is_lent or stop - self._start >= LARGE_BYTES
            self._start = stop
            if request is None:
                return requests
            requests.append(request)

    def _look(self) -> None:
        """Wait for a message: awake at first, if the last one came soon."""
        began = time.perf_counter()
        limit_s = SPIN_S if self._waited_s < SPIN_S else 0.0
        while not self._readable.poll(0):
            if time.perf_counter() - began >= limit_s:
                self._readable.poll()
                break
        self._waited_s = time.perf_counter() - began

    def _fill(self, size: int) -> None:
        """Read until `size` bytes from the start are there, into a buffer that nobody looks at."""
        have = self._end - self._start
        if have == 0 and not self._is_lent:
            self._start = self._end = 0
        if self._is_lent or self._start + size > len(self._buffer):
            fresh = bytearray(max(size + LARGE_BYTES, BUFFER_BYTES))  # and the next one's head
            fresh[:have] = self._buffer[self._start : self._end]
            self._buffer, self._start, self._end, self._is_lent = fresh, 0, have, False
        with memoryview(self._buffer) as view:
            while self._end - self._start < size:
                got = self._socket.recv_into(view[self._end :])
                if got == 0:
                    logger.info("Frontend disconnected.")
                    sys.exit(0)
                self._end += got


def parse(buffer: bytearray, start: int, end: int) -> tuple[Request | None, int]:
    """The request at `start`, None at the end of the message, and where it ends.

    Raises:
        _IncompleteError: It goes on behind `end`.
    """
    if start + 4 > end:
        raise _IncompleteError(4)
    (size,) = _INT.unpack_from(buffer, start)
    if size == -1:
        return None, start + 4
    headers = start + 4 + size
    stop = buffer.find(_END, headers, end)
    if stop < 0:
        raise _IncompleteError(max(end, headers) + 4 - start)
    request = Request(
        b"",
        id=bytes(buffer[start + 4 : headers]),
        raw_headers=bytes(buffer[headers:stop]),
    )
    return request, _read_parameters(request, buffer, stop + 4, start, end)


def _read_parameters(request: Request, buffer: bytearray, place: int, start: int, end: int) -> int:
    """Fill in a request's body, content type and fields; returns where they end.

    The body is the parameter `body` or `data`, or else the first there is.
    """
    parameters: list[tuple[str, str, Any]] = []
    while True:
        texts: list[Any] = []
        for part in range(3):
            if place + 4 > end:
                raise _IncompleteError(place + 4 - start)
            (size,) = _INT.unpack_from(buffer, place)
            place += 4
            if size == -1 and part == 0:
                _take(request, parameters)
                return place
            if place + size > end:
                raise _IncompleteError(place + size - start)
            if size < LARGE_BYTES:
                texts.append(bytes(buffer[place : place + size]))
            else:
                texts.append(memoryview(buffer)[place : place + size])
            place += size
        name, content_type, value = texts
        parameters.append((name.decode(), content_type.decode(), value))


def _take(request: Request, parameters: Sequence[tuple[str, str, Any]]) -> None:
    if len(parameters) == 1:
        request.name, request.content_type, request.body = parameters[0]
        return
    named = dict(_unique(parameters))
    if named:
        request.name = next((name for name in _BODY_NAMES if name in named), next(iter(named)))
        request.content_type, request.body = named.pop(request.name)
        request.fields = {name: value for name, (_, value) in named.items()}


def _unique(parameters: Sequence[tuple[str, str, Any]]) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Content types and values by name: forms send several files under one."""
    seen: Counter[str] = Counter()
    for name, content_type, value in parameters:
        seen[name] += 1
        yield f"{name}#{seen[name]}" if seen[name] > 1 else name, (content_type, value)


def encode(requests: Sequence[Request], replies: Sequence[Reply], timing: str) -> bytes:
    """The message that answers a batch, or a part of it, as `create_predict_response` writes it."""
    size = _INT.pack
    heads: dict[tuple[object, ...], bytes] = {}  # most of a batch share one
    parts = [_OPENING]
    for request, given in zip(requests, replies, strict=True):
        reply = given if request.raw_headers else _for_grpc(given)
        kind = (reply.content_type, reply.status, reply.headers)
        head = heads.get(kind) or heads.setdefault(kind, _head(reply, timing))
        parts += (size(len(request.id)), request.id, head, size(len(reply.body)), reply.body)
    parts.append(_END)
    return b"".join(parts)


def _for_grpc(reply: Reply) -> Reply:
    """The answer to a request without headers: it came by gRPC, for HTTP's have a length at least.

    StreamPredictions ends the worker where the last part does not say that it is (GRPCJob.java).
    """
    if any(name == STREAM_HEADER for name, _ in reply.headers):
        return reply
    return replace(reply, headers=(*reply.headers, (STREAM_HEADER, "false")))


def _head(reply: Reply, timing: str) -> bytes:
    """An answer's content type, status and headers."""
    phrase = "" if reply.status == HTTPStatus.OK else HTTPStatus(reply.status).phrase
    headers = reply.all_headers(timing)
    texts = b"".join(_text(name) + _text(value) for name, value in headers.items())
    start = _text(reply.content_type) + _INT.pack(reply.status) + _text(phrase)
    return start + _INT.pack(len(headers)) + texts


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return _INT.pack(len(data)) + data


_OPENING = _INT.pack(HTTPStatus.OK) + _text("Prediction success")


Send = Callable[[bytes], None]


def send_parts(parts: Mapping[int, Reply], context: Any) -> None:  # noqa: ANN401  TorchServe's own
    """Send parts of streams with the stock writer; `context` knows their headers."""
    from ts.handler_utils.utils import send_intermediate_predict_response

    ids = {index: context.request_ids[index] for index in parts}
    bodies = {index: part.body for index, part in parts.items()}
    send_intermediate_predict_response(bodies, ids, "Prediction success", HTTPStatus.OK, context)


def install(answer: Callable[[Sequence[Request], Send], bytes], *, spins: bool = False) -> bool:
    """Let this worker read through a buffer and answer with `answer`, if it is a known one.

    Args:
        answer: Turns a batch into the message that answers it; may send others before that.
        spins: As `Connection` takes it.

    Returns:
        Whether it does; if not, a warning says why and the stock functions stay.
    """
    from ts import service, version
    from ts.protocol import otf_message_handler

    worker = sys.modules["__main__"]  # TorchServe starts model_service_worker.py as a script
    if not hasattr(worker, "TorchModelServiceWorker"):
        return False  # a test or a tool holds the handler, and nothing is read from a socket
    if reason := unknown(version.__version__.strip(), Path(service.__file__).parent):
        logger.warning("TorchServe's own, slower transport is used: %s", reason)
        return False
    connections: dict[socket, Connection] = {}
    stock_predict = service.Service.predict

    def retrieve_msg(sock: socket) -> tuple[bytes, Any]:
        connection = connections.get(sock) or connections.setdefault(
            sock, Connection(sock, spins=spins)
        )
        command = connection.recv(1)
        if command == PREDICT:
            return command, _Batch(connection.batch())
        if command == LOAD:
            return command, otf_message_handler._retrieve_load_msg(connection)
        raise ValueError(f"a message must begin with I or L, got {command!r}")

    def predict(self: Any, batch: Any) -> bytes:  # noqa: ANN401  TorchServe's own
        is_ours = isinstance(batch, _Batch)
        return answer(batch, self.cl_socket.sendall) if is_ours else stock_predict(self, batch)

    worker.retrieve_msg = retrieve_msg  # type: ignore[attr-defined]  # the script's own global
    service.Service.predict = predict
    return True


class _Batch(list[Request]):
    """Requests that came through the buffer, told from those of the stock reader."""


def unknown(version: str, folder: Path) -> str | None:
    """Why this TorchServe is none whose functions may be replaced; None if it is one."""
    if version != KNOWN_VERSION:
        return f"version {KNOWN_VERSION} is known, this is {version}"
    for name, digest in KNOWN_FILES.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            return f"{name} of TorchServe was changed"
    return None
