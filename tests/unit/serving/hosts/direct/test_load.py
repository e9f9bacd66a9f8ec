"""What the acceptor tells of the load of a version: autoscaling goes by it."""

import json
import socket
from typing import Any

from directly import Place, service, until
from marship.serving.metrics import TIMES_S

CALLS, BUSY_S, WAITED_S, TOOK = 1, 2, 3, 4


def load(place: Place, version: str | None = "1.0") -> Any:
    """Ask for it, as autoscaling does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(10)
        line.connect(str(place.path))
        asked = {"kind": "ask load", "model": "m", "version": version}
        line.send(json.dumps(asked).encode() + b"\n")
        return json.loads(line.recv(1 << 16))


def test_requests_are_counted_with_their_times(place: Place, loaded: Any) -> None:
    """Of all workers of a version: requests, calls, seconds, and how long each request took."""
    for _ in range(2):
        place.add(loaded)
    place.follow(m=("1.0",))
    before = load(place)["done"] or [0.0] * (TOOK + len(TIMES_S) + 1)
    assert [place.ask().status for _ in range(10)] == [200] * 10
    until(lambda: load(place)["done"][0] >= before[0] + 20)  # both report the same service's sums
    more = [new - old for new, old in zip(load(place)["done"], before, strict=True)]
    assert more[CALLS] == 20
    assert more[BUSY_S] > 0
    assert more[WAITED_S] > 0
    assert sum(more[TOOK:]) == 20
    assert load(place, None) == load(place)
    assert load(place)["ongoing"] == 0
    other = load(place, "2.0")
    assert (other["ongoing"], other["done"], other["took_s"]) == (0, [], list(TIMES_S))


def test_a_request_that_runs_is_in_hand(place: Place, folder: Any) -> None:
    """A connection with a request that is read or runs counts, one between requests does not."""
    place.add(service(folder))
    place.follow(m=("1.0",))
    with place.line() as waits, place.line() as idle:
        idle.send(b"POST /predictions/m HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n[[0.1")
        waits.send(b"GET /v2/models/m/ready HTTP/1.1\r\nHost: here\r\n\r\n")
        assert waits.read("GET").status == 200
        until(lambda: load(place)["ongoing"] == 1)


def test_the_next_acceptor_counts_anew(place: Place, loaded: Any) -> None:
    """Its sums begin at nothing, not with all that its workers did before."""
    place.add(loaded)
    place.follow(m=("1.0",))
    place.ask()
    until(lambda: load(place)["done"])
    place.stop_acceptor()
    place.start_acceptor()
    until(lambda: place.seats() == 1)
    place.follow(m=("1.0",))
    place.ask()
    until(lambda: load(place)["done"])
    assert load(place)["done"][0] <= 1
