"""The buffered transport reads and writes the very bytes of the stock one."""

import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ts.context import Context, RequestProcessor
from ts.protocol import otf_message_handler as stock

from marship.serving.hosts.torchserve import wire as transport
from marship.serving.hosts.torchserve.wire import FrontendConnection
from marship.serving.message import Reply, Request

TEXT = st.text(max_size=30)
CONTENT_TYPES = st.sampled_from(["", "application/octet-stream", "image/png", "x/y; z=1"])
VALUE = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"\xff" * 9, bytes(transport.LARGE_BYTES), b"\xff" * transport.BUFFER_BYTES]),
)
LONG_NAME = "n" * transport.LARGE_BYTES
HEADERS = st.dictionaries(TEXT, TEXT, max_size=5)
PARAMETERS = st.lists(
    st.tuples(st.sampled_from(["body", "data", "k", "é", LONG_NAME]), CONTENT_TYPES, VALUE),
    max_size=3,
    unique_by=lambda parameter: parameter[0],  # the stock reader forgets all but the last
)
REQUESTS = st.lists(st.tuples(st.binary(min_size=1, max_size=36), HEADERS, PARAMETERS), max_size=6)
Raw = list[tuple[bytes, dict[str, str], list[tuple[str, str, bytes]]]]


def framed(data: bytes) -> bytes:
    """A length and so many bytes."""
    return struct.pack("!i", len(data)) + data


END = struct.pack("!i", -1)


def message(requests: Raw) -> bytes:
    """An inference message as the frontend writes it."""
    parts = [b"I"]
    for request_id, headers, parameters in requests:
        parts.append(framed(request_id))
        parts += [framed(k.encode()) + framed(v.encode()) for k, v in headers.items()]
        parts.append(END)
        for name, content_type, value in parameters:
            parts.append(framed(name.encode()) + framed(content_type.encode()) + framed(value))
        parts.append(END)
    return b"".join([*parts, END])


class Socket:
    """Bytes that arrive in chunks, and then the end of the connection."""

    def __init__(self, data: bytes, pieces: list[int]) -> None:
        self.data = data
        self.pieces = pieces

    def _size(self, most: int) -> int:
        piece = self.pieces.pop(0) if self.pieces else len(self.data)
        return min(piece, most, len(self.data))

    def recv(self, most: int) -> bytes:
        """The next chunk."""
        size = self._size(most)
        found, self.data = self.data[:size], self.data[size:]
        return found

    def recv_into(self, view: memoryview) -> int:
        """The next chunk, into a buffer."""
        found = self.recv(len(view))
        view[: len(found)] = found
        return len(found)


def as_stock_reads(data: bytes) -> list[Request]:
    """What the stock reader and its service make of a message, as our requests."""
    _, batch = stock.retrieve_msg(Socket(data, []))
    requests = []
    for raw in batch:
        row = {p["name"]: p for p in raw["parameters"]}
        name = next((n for n in ("body", "data") if n in row), next(iter(row), None))
        body = row.pop(name) if name is not None else {"value": b"", "contentType": ""}
        requests.append(
            Request(
                body=bytes(body["value"]),
                content_type=body["contentType"],
                name=name or "body",
                fields={key: bytes(p["value"]) for key, p in row.items()},
                id=bytes(raw["requestId"]),
                headers={h["name"].decode().lower(): h["value"].decode() for h in raw["headers"]},
            )
        )
    return requests


def as_bytes(requests: list[Request]) -> list[tuple[object, ...]]:
    """Requests in a form that compares equal where their contents do."""
    return [
        (
            bytes(r.body),
            r.content_type,
            r.name,
            {name: bytes(value) for name, value in r.fields.items()},
            r.id,
            r.headers,
        )
        for r in requests
    ]


def read(connection: FrontendConnection) -> list[Request]:
    """The next message of a connection."""
    assert connection.recv(1) == b"I"
    return connection.batch()


@settings(max_examples=300, deadline=None)
@given(requests=REQUESTS, pieces=st.lists(st.integers(1, 50), max_size=60))
def test_it_reads_what_the_stock_reader_reads(requests: Raw, pieces: list[int]) -> None:
    """Whatever the message and however it is split, every part is the same."""
    data = message(requests)
    found = read(FrontendConnection(Socket(data, pieces)))
    assert as_bytes(found) == as_bytes(as_stock_reads(data))


def test_a_name_that_comes_again_is_kept() -> None:
    """A form with several files of one name loses none; the body is the first of them."""
    files = [("file", "image/png", b"1"), ("k", "", b"3"), ("file", "", b"2"), ("file", "", b"3")]
    (found,) = read(FrontendConnection(Socket(message([(b"id", {}, files)]), [])))
    assert (found.name, found.content_type, found.body) == ("file", "image/png", b"1")
    assert found.fields == {"k": b"3", "file#2": b"2", "file#3": b"3"}


@settings(max_examples=100, deadline=None)
@given(first=REQUESTS, second=REQUESTS, pieces=st.lists(st.integers(1, 300), max_size=20))
def test_messages_follow_each_other(first: Raw, second: Raw, pieces: list[int]) -> None:
    """A second message is read rightly, and what was handed out of the first stays as it was."""
    one, two = message(first), message(second)
    connection = FrontendConnection(Socket(one + two, pieces))
    held = read(connection)
    assert as_bytes(read(connection)) == as_bytes(as_stock_reads(two))
    assert as_bytes(held) == as_bytes(as_stock_reads(one))


def test_large_bodies_are_read_in_few_steps() -> None:
    """Eight bodies of 600 KB in chunks of 200 KB take a read or two each beyond the chunks."""
    body = bytes(600_000)
    data = message([(b"id", {}, [("body", "", body)])] * 8)
    pieces = [200_000] * 1000
    found = read(FrontendConnection(Socket(data, pieces)))
    assert [len(request.body) for request in found] == [600_000] * 8
    assert 1000 - len(pieces) < len(data) / 200_000 + 3 * 8


class Watched(bytearray):
    """A buffer that counts the bytes that are searched in it, and copied from or into it."""

    touched = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        Watched.touched += len(found)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        Watched.touched += len(value)
        super().__setitem__(key, value)

    def find(self, sub: Any, start: Any = None, end: Any = None) -> int:
        """Count up to where it is found."""
        found = super().find(sub, start, end)
        Watched.touched += (found if found >= 0 else end) - start
        return found


class Lengths:
    """The lengths that are read, counted."""

    def __init__(self) -> None:
        self.reads = 0

    def unpack_from(self, *args: Any) -> tuple[int]:
        """One more."""
        self.reads += 1
        return struct.unpack_from("!i", *args)


class Dripping:
    """A socket from which a message comes in chunks of one size."""

    def __init__(self, data: bytes, piece: int) -> None:
        self.data, self.piece, self.place = data, piece, 0

    def recv_into(self, view: memoryview) -> int:
        """The next chunk."""
        found = self.data[self.place : self.place + min(self.piece, len(view))]
        view[: len(found)] = found
        self.place += len(found)
        return len(found)


LARGE_MESSAGES = {
    "fields": [(b"id", {}, [(f"f{i}", "", b"") for i in range(3000)])],
    "headers": [(b"id", {f"h{i}": "v" * 9 for i in range(3000)}, [("body", "", b"1")])],
    "requests": [(b"%d" % i, {"h": "v"}, [("body", "", b"1")]) for i in range(1500)],
    "name": [(b"id", {}, [("n" * 40_000, "t" * 40_000, b"1"), ("k", "", b"2")])],
    "values": [(b"id", {}, [(f"f{i}", "", bytes(60 << 10)) for i in range(9)])],
    "large values": [(b"id", {}, [(f"f{i}", "", bytes(80 << 10)) for i in range(9)])],
}


@pytest.mark.parametrize("piece", [1, 3, 1000, 1 << 17])
@pytest.mark.parametrize("kind", LARGE_MESSAGES)
def test_work_is_linear_in_the_bytes_received(
    kind: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of any size each length is read once, and each byte touched a few times."""
    data = message(LARGE_MESSAGES[kind])
    whole = FrontendConnection(Dripping(data, len(data)), max_fields=5000)
    whole.recv(1)
    wanted = as_bytes(whole.batch())
    lengths = Lengths()
    monkeypatch.setattr(transport, "bytearray", Watched, raising=False)
    monkeypatch.setattr(Watched, "touched", 0)
    connection = FrontendConnection(Dripping(data, piece), max_fields=5000)
    with monkeypatch.context() as counting:
        counting.setattr(transport, "_INT", lengths)
        connection.recv(1)
        found = connection.batch()
    assert as_bytes(found) == wanted
    texts = sum(1 + 3 * len(parameters) + 1 for _, _, parameters in LARGE_MESSAGES[kind])
    assert lengths.reads == texts + 1  # and the end of the message
    assert Watched.touched <= 6 * len(data)  # at a byte a piece four are searched anew each time


def test_fields_beyond_the_limit_are_counted_and_not_kept() -> None:
    """Up to the limit a form is whole; of a larger one nothing stays but the number of fields."""
    for count in (1, 2, 9, 10, 11, 500):
        fields = [(f"f{i}", "", bytes(10)) for i in range(count - 1)] + [
            ("file", "", bytes(1 << 17))
        ]
        data = message([(b"id", {"h": "v"}, fields), (b"other", {}, [("body", "", b"1")])])
        found, other = read(FrontendConnection(Socket(data, [100] * 50), max_fields=10))
        assert (found.id, found.headers, found.field_count) == (b"id", {"h": "v"}, count)
        kept = bool(found.body) + len(found.fields)
        assert kept == (count if count <= 10 else 0)
        assert (other.body, other.field_count) == (b"1", 1)


def test_names_that_collide_count_as_fields() -> None:
    """A form cannot get under the limit by names that are made equal."""
    fields = [(name, "", b"1") for name in ("a", "a", "a#2", "a#2")]
    (found,) = read(FrontendConnection(Socket(message([(b"id", {}, fields)]), []), max_fields=3))
    assert (found.field_count, found.fields, found.body) == (4, {}, b"")


@settings(max_examples=100, deadline=None)
@given(requests=REQUESTS, cut=st.floats(0, 1, exclude_max=True))
def test_a_connection_that_ends_early_ends_the_worker_quietly(requests: Raw, cut: float) -> None:
    """Cut anywhere, both readers leave with exit code 0, as the frontend's end means."""
    data = message(requests)
    data = data[: int(len(data) * cut)]
    with pytest.raises(SystemExit) as stock_exit:
        stock.retrieve_msg(Socket(data, []))
    with pytest.raises(SystemExit) as our_exit:
        read(FrontendConnection(Socket(data, [])))
    assert our_exit.value.code == stock_exit.value.code == 0


@settings(max_examples=200, deadline=None)
@given(
    replies=st.lists(
        st.tuples(
            st.binary(max_size=50),
            st.sampled_from(["application/json", "image/png"]),
            st.sampled_from([200, 400, 413, 500]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_it_writes_what_the_stock_writer_writes(replies: list[tuple[bytes, str, int]]) -> None:
    """The response of a batch is the stock function's, byte for byte."""
    from http import HTTPStatus

    requests = [Request(b"", id=b"id-%d" % i, headers={"h": ""}) for i in range(len(replies))]
    ours = [Reply(body, content_type, status) for body, content_type, status in replies]
    context = Context("m", ".", {}, 1, None, "0.12.0")
    context.request_processor = [RequestProcessor({}) for _ in replies]
    for i, reply in enumerate(ours):
        for name, value in reply.all_headers("t").items():
            context.set_response_header(i, name, value)
        if reply.status != 200:
            context.set_response_status(reply.status, HTTPStatus(reply.status).phrase, i)
    ids = {i: request.id.decode() for i, request in enumerate(requests)}
    bodies = [reply.body for reply in ours]
    wanted = stock.create_predict_response(bodies, ids, "Prediction success", 200, context)
    assert transport.encode(requests, ours, "t") == bytes(wanted)


def test_a_response_by_grpc_says_that_nothing_follows() -> None:
    """Only gRPC's requests have no headers; TorchServe fails over one of its calls without it."""
    by_http, by_grpc = Request(b"", id=b"a", headers={"h": ""}), Request(b"", id=b"b")
    part = Reply(b"", headers=((transport.STREAM_HEADER, "true"),))
    assert transport.STREAM_HEADER.encode() not in transport.encode([by_http], [Reply(b"")], "t")
    for reply, value in ((Reply(b""), b"false"), (part, b"true")):
        _, after = transport.encode([by_grpc], [reply], "t").split(transport.STREAM_HEADER.encode())
        assert after[4:].startswith(value)


class Doorbell:
    """A poll object that counts its calls, with a clock that it moves on.

    Messages arrive at set times; a look takes 10 us, and sleeping lasts until the next message.
    """

    LOOK_S = 1e-5

    def __init__(self, arrivals_s: list[float], sender: socket.socket) -> None:
        self.arrivals_s, self.sender = arrivals_s, sender
        self.now_s = 0.0
        self.looks = self.sleeps = 0

    def register(self, *_: object) -> None:
        """There is one socket only."""

    def poll(self, timeout: float | None = None) -> bool:
        """Whether a message is there; without a timeout, wait for it."""
        if timeout is None:
            self.sleeps += 1
            self.now_s = max(self.now_s, self.arrivals_s[0])
        else:
            self.looks += 1
            self.now_s += self.LOOK_S
        if self.now_s < self.arrivals_s[0]:
            return False
        self.arrivals_s.pop(0)
        self.sender.sendall(b"I")
        return True


@pytest.mark.parametrize(
    ("pause_s", "looks"),
    [
        (0.0, transport.SPIN_S / Doorbell.LOOK_S),
        (transport.SPIN_S / 2, transport.SPIN_S / Doorbell.LOOK_S),
        (0.02, 1),
    ],
)
def test_it_looks_for_a_message_only_while_they_come_at_once(
    pause_s: float, looks: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with a request at once stays awake for the next message; else it sleeps at once."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bell = Doorbell([0.0, pause_s, 2 * pause_s, 1.0], theirs)
        monkeypatch.setattr(transport.select, "poll", lambda: bell)
        monkeypatch.setattr(transport.time, "perf_counter", lambda: bell.now_s)
        connection = FrontendConnection(ours, spins=lambda: True)
        for _ in range(3):
            assert connection.recv(1) == b"I"
        bell.looks = bell.sleeps = 0
        assert connection.recv(1) == b"I"
    assert bell.sleeps == 1
    assert bell.looks == pytest.approx(looks, abs=2)
