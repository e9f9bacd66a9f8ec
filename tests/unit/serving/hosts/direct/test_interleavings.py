"""Connections that move between workers while requests come in pieces: none lost, none twice."""

import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from directly import BODY, JSON, Line, Place, request, service, until

CHUNKED = (
    b"POST /predictions/m HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: application/json\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
)


def kinds(number: int) -> dict[str, tuple[bytes, int, str]]:
    """Requests, each with its status and how its response is read; a number makes heads new."""
    new = {**JSON, "X-Number": str(number)}
    large = BODY + b" " * (20_000 + number % 60_000)
    return {
        "known": (request(), 200, "POST"),
        "new": (request(headers=new), 200, "POST"),
        "large": (request(body=large), 200, "POST"),
        "invalid": (request(body=b"{", headers=new), 400, "POST"),
        "model": (request("/v2/models/m", b"", "GET"), 200, "GET"),
        "head": (request("/v2/models/m/ready", b"", "HEAD"), 200, "HEAD"),
        "ping": (request("/ping", b"", "GET"), 200, "GET"),
        "options": (request("/predictions/m", b"", "OPTIONS", headers=new), 204, "OPTIONS"),
        "another": (request("/predictions/n"), 200, "POST"),
        "nobody": (request("/predictions/nobody", headers=new), 404, "POST"),
        "body": (request("/v2/models/m", b"xyz", "GET"), 413, "GET"),
    }


LAST = {
    "close": (request(headers={**JSON, "Connection": "close"}), 200, "POST"),
    "chunked": (CHUNKED, 200, "POST"),
    "old": (b"POST /predictions/m HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]", 400, "POST"),
    "no request": (b"x\r\n\r\n", 400, "GET"),
}
"""What ends the connection, or may: nothing stands behind it."""


@pytest.fixture(scope="module")
def moving(folder: Path, loaded: Any) -> Iterator[Place]:
    """Two workers of `m` and one of `n`."""
    made = Place()
    made.add(loaded)
    made.add(service(folder))
    made.add(service(folder, "n"), "n")
    made.follow(m=("1.0",), n=("1.0",))
    yield made
    made.close()


def disturb(place: Place, choice: int, open_drains: list[socket.socket]) -> None:
    """Do to the workers what levelling, scaling down and rollouts do."""
    worker = place.workers[choice % 3]
    if choice % 4 == 0:
        worker._loop.call_soon_threadsafe(worker._give_back, 1 + choice % 3)
    elif choice % 4 == 1:
        place._loop.call_soon_threadsafe(place.acceptor.seats.level)
    elif open_drains:
        open_drains.pop().close()
    else:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.connect(str(place.path))
        told = {"kind": "drain", "model": "mn"[choice % 2], "version": "1.0", "pids": [os.getpid()]}
        line.send(json.dumps(told).encode() + b"\n")
        open_drains.append(line)


def read(line: Line, how: str) -> int:
    """The next status; the time of a lost response is short."""
    line.socket.settimeout(10)
    return line.read(how).status


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 14), last=st.sampled_from([None, *LAST]))
def test_each_request_has_its_response_whatever_moves_meanwhile(
    moving: Place, seed: int, count: int, last: str | None
) -> None:
    """In order, with drains and moves at any place, and also where the client ends its side."""
    chance = random.Random(seed)  # noqa: S311
    table = kinds(seed)
    chosen = [table[chance.choice(sorted(table))] for _ in range(count)]
    chosen += [LAST[last]] if last else []
    stream = b"".join(sent for sent, _, _ in chosen)
    places = sorted(chance.randrange(len(stream)) for _ in range(chance.randrange(6)))
    ends = chance.random() < 0.3
    drains: list[socket.socket] = []
    got: list[int] = []
    is_drained = False
    with moving.line() as line:
        try:
            for start, stop in zip([0, *places], [*places, len(stream)], strict=True):
                line.send(stream[start:stop])
                if chance.random() < 0.6:
                    disturb(moving, chance.randrange(100), drains)
                    is_drained |= bool(drains)
                if chance.random() < 0.3 and len(got) < whole(chosen, stop):
                    got.append(read(line, chosen[len(got)][2]))
            if ends:
                line.socket.shutdown(socket.SHUT_WR)
        finally:
            for drain in drains:
                drain.close()
        while len(got) < len(chosen):
            got.append(read(line, chosen[len(got)][2]))
        if ends or last in ("close", "old", "no request"):
            assert line.is_closed()
    expected = [status for _, status, _ in chosen]
    allowed = {503} if is_drained else set()  # all workers of a model are drained at once here
    assert [g for g, e in zip(got, expected, strict=True) if g != e and g not in allowed] == []
    until(lambda: moving.seats() == 2 and moving.seats("n") == 1)


def whole(chosen: list[tuple[bytes, int, str]], stop: int) -> int:
    """How many requests stand in the first bytes as a whole."""
    size = count = 0
    for sent, _, _ in chosen:
        size += len(sent)
        count += size <= stop
    return count
