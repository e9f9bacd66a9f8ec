"""TorchServe's worker protocol, with buffered reading and writing.

The stock worker reads its socket twice for every name and value, and converts each request to
nested dicts and back. Here a whole message is read at once, parsed lazily, and the responses of
a batch are concatenated once. The bytes are the same in both directions
(ts/protocol/otf_message_handler.py of TorchServe 0.12.0).

    message   "I", requests, int -1
    request   id, headers, int -1, parameters, int -1
    header    name, value
    parameter name, content type, value                  each text: int length, bytes

Integers are 4 bytes, big endian.
"""

import logging
import math
import select
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from socket import socket
from typing import Any

from marship.serving.formats import forms
from marship.serving.message import MAX_FORM_FIELDS, Reply, Request

logger = logging.getLogger(__name__)

STREAM_HEADER = "ts_stream_next"
BUFFER_BYTES = 1 << 18
LARGE_BYTES = 1 << 16
"""A value of this size or more is a view of the buffer, not a copy."""

SPIN_S = 4e-4
"""Busy-poll: how long a worker under steady load looks for the next message before it sleeps.
 Waking costs the lone client of a small model half of its time."""

_INT = struct.Struct("!i")
_END = b"\xff\xff\xff\xff"  # -1; these four bytes are in no UTF-8 text and no sane length
_EXPLAINS = b"\x00\x00\x00\x07explain\x00\x00\x00\x04True"
"""The header that TorchServe adds for `/explanations` and `:explain` (InferenceRequestHandler)."""
_PARTS = range(3)  # of a parameter: name, content type, value
_VALUE = 2


class WireHeaders(Mapping[str, str]):
    """The HTTP headers of a message, with names in lower case; parsed lazily.

    Args:
        raw: The protocol's bytes: names and values with length prefixes.
    """

    __slots__ = ("_raw", "_read")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._read: dict[str, str] | None = None

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401  as Mapping.get
        """One header; usually absent, which is found without parsing."""
        return default if key.encode() not in self._raw.lower() else self._all().get(key, default)

    def _all(self) -> dict[str, str]:
        if self._read is None:
            texts, place = [], 0
            while place < len(self._raw):
                (size,) = _INT.unpack_from(self._raw, place)
                texts.append(self._raw[place + 4 : place + 4 + size].decode("utf-8"))
                place += 4 + size
            self._read = dict(zip([n.lower() for n in texts[::2]], texts[1::2], strict=True))
        return self._read

    def __getitem__(self, key: str) -> str:
        return self._all()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        return bool(self._raw)


class FrontendConnection:
    """A worker's socket, with a buffer of bytes that were read and not parsed yet.

    Args:
        sock: The socket, blocking.
        spins: Whether to busy-poll for `SPIN_S` before sleeping, if the previous message came
            within that time; None is never.
        max_fields: Maximum form fields of one request; those of a larger form are only counted.
    """

    def __init__(
        self,
        sock: socket,
        *,
        spins: Callable[[], bool] | None = None,
        max_fields: int = MAX_FORM_FIELDS,
    ) -> None:
        self._socket = sock
        self._max_fields = max_fields
        self._spins = spins
        self._waited_s = math.inf  # for the last message
        self._readable = select.poll()
        if spins is not None:
            self._readable.register(sock, select.POLLIN)
        self._buffer = bytearray(BUFFER_BYTES)
        self._start = self._end = 0
        self._is_lent = False  # there is a view of the buffer

    def recv(self, size: int) -> bytes:
        """Like `socket.recv`, for the stock readers of rare messages."""
        if self._start == self._end:
            if self._spins is not None and self._spins():
                self._look()
            self._fill(1)
        stop = min(self._end, self._start + size)
        found = bytes(self._buffer[self._start : stop])
        self._start = stop
        return found

    def batch(self) -> list[Request]:
        """The requests of the message whose command was just read."""
        requests: list[Request] = []
        while (request := self._request()) is not None:
            requests.append(request)
        return requests

    def _request(self) -> Request | None:
        """Read the next request; None at the end of the message.

        If the buffer is incomplete it is refilled, and parsing continues at the same place: the
        work is linear in the bytes received, however they are fragmented.
        """
        buffer, place, end = self._buffer, self._start, self._end
        if place + 4 > end:
            buffer, place, end = self._more(place, 4)
        (size,) = _INT.unpack_from(buffer, place)
        place += 4
        if size == -1:
            self._start = place
            return None
        if place + size > end:
            buffer, place, end = self._more(place, size)
        headers = place + size
        stop = buffer.find(_END, headers, end)
        if stop < 0:
            buffer, place, stop = self._headers_end(place, size)
            headers = place + size
        raw = bytes(buffer[headers:stop])
        request = Request(
            b"",
            id=bytes(buffer[place:headers]),
            headers=WireHeaders(raw),
            explains=_EXPLAINS in raw,
        )
        self._read_parameters(request, stop + 4)
        return request

    def _headers_end(self, place: int, size: int) -> tuple[bytearray, int, int]:
        """Read until the headers, `size` bytes after `place`, are complete.

        Returns:
            The buffer, the new place, and the end of the headers.
        """
        while True:
            searched = max(
                size, self._end - place - 3
            )  # the last bytes may be the start of the mark
            buffer, place, end = self._more(place, self._end - place + 1)
            stop = buffer.find(_END, place + searched, end)
            if stop >= 0:
                return buffer, place, stop

    def _read_parameters(self, request: Request, place: int) -> None:
        """Fill in a request's body, content type and fields, which start at `place`.

        The body is the parameter `body` or `data`, else the first one.
        """
        buffer, end = self._buffer, self._end
        parameters: list[tuple[str, str, Any]] = []
        count = 0
        while True:
            texts: list[Any] = []
            keeps = count < self._max_fields
            for part in _PARTS:
                if place + 4 > end:
                    buffer, place, end = self._more(place, 4)
                (size,) = _INT.unpack_from(buffer, place)
                place += 4
                if size == -1 and part == 0:
                    self._start = place
                    forms.fill(request, parameters, count)
                    return
                if place + size > end:
                    buffer, place, end = self._more(place, size)
                if keeps and (size < LARGE_BYTES or part < _VALUE):
                    texts.append(bytes(buffer[place : place + size]))
                elif keeps:
                    texts.append(memoryview(buffer)[place : place + size])
                    self._is_lent = True
                place += size
            count += 1
            if keeps:
                name, content_type, value = texts
                parameters.append((name.decode(), content_type.decode(), value))

    def _look(self) -> None:
        """Wait for a message; busy-poll first, if the last one came soon."""
        started_at = time.perf_counter()
        limit_s = SPIN_S if self._waited_s < SPIN_S else 0.0
        while not self._readable.poll(0):
            if time.perf_counter() - started_at >= limit_s:
                self._readable.poll()
                break
        self._waited_s = time.perf_counter() - started_at

    def _more(self, place: int, size: int) -> tuple[bytearray, int, int]:
        """Read until there are `size` bytes from `place`; bytes before it may be dropped.

        Returns:
            The buffer, the new place, and the end of what was read.
        """
        self._start = place
        self._fill(size)
        return self._buffer, self._start, self._end

    def _fill(self, size: int) -> None:
        """Read until there are `size` bytes from the start, into a buffer without views."""
        have = self._end - self._start
        if have == 0 and not self._is_lent:
            self._start = self._end = 0
        if self._is_lent or self._start + size > len(self._buffer):
            # space for the next one's head; twice what is kept, so that copying stays linear
            fresh = bytearray(max(size + LARGE_BYTES, 2 * have, BUFFER_BYTES))
            fresh[:have] = self._buffer[self._start : self._end]
            self._buffer, self._start, self._end, self._is_lent = fresh, 0, have, False
        with memoryview(self._buffer) as view:
            while self._end - self._start < size:
                got = self._socket.recv_into(view[self._end :])
                if got == 0:
                    logger.info("Frontend disconnected.")
                    sys.exit(0)
                self._end += got


def encode(requests: Sequence[Request], replies: Sequence[Reply], timing: str) -> bytes:
    """The message with responses to a batch, or to a part of it: `create_predict_response`."""
    size = _INT.pack
    heads: dict[tuple[object, ...], bytes] = {}  # most responses of a batch are equal in these
    parts = [_OPENING]
    for request, given in zip(requests, replies, strict=True):
        reply = given if request.headers else _for_grpc(given)
        kind = (reply.content_type, reply.status, reply.headers)
        head = heads.get(kind) or heads.setdefault(kind, _head(reply, timing))
        parts += (size(len(request.id)), request.id, head, size(len(reply.body)), reply.body)
    parts.append(_END)
    return b"".join(parts)


def _for_grpc(reply: Reply) -> Reply:
    """The reply to a request without headers: from gRPC, since HTTP's have a length at least.

    StreamPredictions kills the worker if the last part is not marked as last (GRPCJob.java).
    """
    if any(name == STREAM_HEADER for name, _ in reply.headers):
        return reply
    return replace(reply, headers=(*reply.headers, (STREAM_HEADER, "false")))


def _head(reply: Reply, timing: str) -> bytes:
    """A response's content type, status and headers."""
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
    """Send parts of streams with the stock writer; `context` has their headers."""
    from ts.handler_utils.utils import send_intermediate_predict_response

    ids = {index: context.request_ids[index] for index in parts}
    bodies = {index: part.body for index, part in parts.items()}
    send_intermediate_predict_response(bodies, ids, "Prediction success", HTTPStatus.OK, context)
