"""Heads of requests: a request line with its headers, read once.

A client sends the same bytes as a head again and again. httptools reads them the first time; what
it found, and that the head was within the limits, is kept by these very bytes.
"""

from collections.abc import Iterator, Mapping
from copy import copy
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from marship.serving.formats import forms

EVENTS_TYPE = "text/event-stream"
MOST = 512
"""Heads that are kept; then all are forgotten, and those in use are read once more."""
MOST_BYTES = 1 << 11
"""Longer heads are not kept."""


COPY = b"x-marship-copy"
"""Marks a request whose response no client gets: see `split`."""
TRACE = b"traceparent"
"""W3C Trace Context, 3.2; it differs with each request, so heads are kept without it."""
_BEFORE, _VALUE_BYTES = b"\r\ntraceparent: ", 55
_FOLDS = (b"", b" ", b"\t")
_TRACE_NAME = TRACE.decode()


class Headers(Mapping[str, str]):
    """HTTP headers, names in lower case; decoded when one is read.

    Args:
        raw: Names in lower case and values, as they came.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: Mapping[bytes, bytes]) -> None:
        self._raw = raw

    def __getitem__(self, key: str) -> str:
        return self._raw[key.encode("latin-1")].decode("latin-1")

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401  as Mapping has it
        """A header, or the default: Mapping's own raises and catches for each that is missing."""
        value = self._raw.get(key.encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __bool__(self) -> bool:
        return True  # a request over HTTP, even where it sends no header


class TracedHeaders(Headers):
    """The same with a trace id, without a copy of the others for each request.

    Args:
        raw: The others.
        trace: The id.
    """

    __slots__ = ("_trace",)

    def __init__(self, raw: Mapping[bytes, bytes], trace: bytes) -> None:
        self._raw, self._trace = raw, trace

    def __getitem__(self, key: str) -> str:
        return self._trace.decode("latin-1") if key == _TRACE_NAME else super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401  as Mapping has it
        """A header, or the default."""
        if key == _TRACE_NAME:
            return self[key]
        return Headers.get(self, key, default)

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        yield _TRACE_NAME

    def __len__(self) -> int:
        return len(self._raw) + 1


class Head:
    """A request line with its headers; several requests may share it, so nothing may change it.

    Attributes:
        method: In capital letters.
        path: Without the query.
        query: What follows the question mark, as it came.
        raw: Headers, names in lower case and values as they came.
        length: Bytes of the body; 0 where it comes in chunks.
        is_chunked: Whether the body comes in chunks.
        keeps_alive: Whether the connection stays open after the response.
        accepts_chunks: Whether a response without a length can be sent (HTTP/1.1).
    """

    def __init__(
        self,
        method: str,
        target: bytes,
        raw: Mapping[bytes, bytes],
        *,
        keeps_alive: bool = True,
        accepts_chunks: bool = True,
    ) -> None:
        self.method, self.raw = method, raw
        self.path, _, self.query = target.partition(b"?")
        self.keeps_alive, self.accepts_chunks = keeps_alive, accepts_chunks
        self.is_chunked = b"transfer-encoding" in raw
        self.length = 0 if self.is_chunked else int(raw.get(b"content-length") or 0)

    def without(self, name: bytes) -> "Head":
        """The same without a header."""
        other = copy(self)
        other.raw = {key: value for key, value in self.raw.items() if key != name}
        other.__dict__.pop("headers", None)
        return other

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers, decoded when one is read."""
        return Headers(self.raw)

    @cached_property
    def content_type(self) -> str:
        """As it came; empty where there is none."""
        return self.raw.get(b"content-type", b"").decode("latin-1")

    @cached_property
    def is_plain(self) -> bool:
        """Whether the body is what it says: no form, no content encoding."""
        is_form = self.content_type.lower().startswith(("multipart/", forms.FIELDS_TYPE))
        return not is_form and b"content-encoding" not in self.raw

    @cached_property
    def wants_events(self) -> bool:
        """Whether the parts of a response are to come as server-sent events."""
        return EVENTS_TYPE.encode() in self.raw.get(b"accept", b"")

    @cached_property
    def parameters(self) -> dict[str, bytes]:
        """The parameters in the query, named and encoded as those of a form."""
        found = parse_qsl(self.query.decode("latin-1"), keep_blank_values=True)
        named = forms.unique([(name, "", value.encode()) for name, value in found])
        return {name: value for name, (_, value) in named}


class Heads:
    """Heads that were read, by their bytes.

    Attributes:
        is_closing: Whether each connection ends behind its next response: see `finish`.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self.is_closing = False
        self.get = self._known.get

    def find(self, data: bytes) -> tuple[Head | None, bytes]:
        """What all bytes of a head say, where it is known, and its trace id; empty without one.

        Such a head has no trace id among its headers.
        """
        if known := self._known.get(data):
            return known, b""
        if (parts := _untraced(data)) is None:
            return None, b""
        return self._known.get(parts[0]), parts[1]

    def keep(self, data: bytes, head: Head) -> None:
        """Keep a head that may come again.

        Args:
            data: All its bytes.
            head: What they say; within the limits, and its body has a length.
        """
        if len(data) > MOST_BYTES or self.is_closing:
            return
        if parts := _untraced(data):
            data, head = parts[0], head.without(TRACE)
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[data] = head

    def finish(self) -> None:
        """Let every head that is read from now on be its connection's last."""
        self.is_closing = True
        self._known.clear()


def _untraced(data: bytes) -> tuple[bytes, bytes] | None:
    """A head without its trace id, and that; None unless there is one as clients write it.

    It must be a line of its own, of letters and digits, which the next line does not go on with
    (RFC 9112, 5.2); then what is left is read as if it had not been there.
    """
    at = data.find(_BEFORE)
    if at < 0:
        return None
    start = at + len(_BEFORE)
    end = start + _VALUE_BYTES
    value = data[start:end]
    if (
        not data.startswith(b"\r\n", end)
        or data[end + 2 : end + 3] in _FOLDS
        or not value.replace(b"-", b"").isalnum()
        or data.find(_BEFORE, end) >= 0
    ):
        return None
    return data[:at] + data[end:], value
