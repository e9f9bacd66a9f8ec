"""A server that ends: each response is its connection's last, and what asks nothing is closed."""

from typing import Any

from directly import RIGHT, Place, request, until
from marship.serving.hosts.direct.site import LAST_REQUEST_S


def finished(place: Place) -> None:
    """Let the acceptor finish, and its worker know of it; its listeners close."""
    place._loop.call_soon_threadsafe(place.acceptor.finish)
    until(lambda: all(worker.heads.is_closing for worker in place.workers))


def test_the_next_response_is_the_last(place: Place, loaded: Any) -> None:
    """Of a connection at its worker, and of one that has not sent anything yet."""
    place.add(loaded)
    place.follow(m=("1.0",))
    with place.line() as known, place.line() as fresh:
        known.send(request())
        assert "connection" not in known.read().headers
        until(lambda: place.acceptor.connections == 2)
        finished(place)
        for line in (known, fresh):
            line.send(request())
            found = line.read()
            assert found.json() == [[RIGHT]]
            assert found.headers["connection"] == "close"
            assert line.is_closed()
    until(lambda: place.acceptor.connections == 0)


def test_idle_connections_are_closed_after_a_while(place: Place, loaded: Any) -> None:
    """At the worker and at the acceptor; 75 s would be too long for a pod that ends."""
    assert place.limits.idle_s > 10 * LAST_REQUEST_S
    place.add(loaded)
    place.follow(m=("1.0",))
    with place.line() as known, place.line() as fresh:
        known.send(request())
        known.read()
        until(lambda: place.acceptor.connections == 2)
        finished(place)
        assert known.is_closed()
        assert fresh.is_closed()


def test_a_request_that_has_begun_to_come_is_answered(place: Place, loaded: Any) -> None:
    """Its head came before the end, its body after."""
    place.add(loaded)
    place.follow(m=("1.0",))
    whole = request()
    with place.line() as line:
        line.send(whole[:-5])
        until(lambda: place.acceptor.connections == 1)
        finished(place)
        line.send(whole[-5:])
        assert line.read().json() == [[RIGHT]]
    until(lambda: place.acceptor.connections == 0)


def test_readiness_says_no_and_liveness_yes(place: Place, loaded: Any) -> None:
    """Of the server, and of the model at its worker."""
    place.add(loaded)
    place.follow(m=("1.0",))
    paths = ("/v2/health/ready", "/v2/models/m/ready", "/v2/health/live", "/v2/health/ready")
    lines = [place.line() for _ in paths]
    entered = [line.__enter__() for line in lines]
    until(lambda: place.acceptor.connections == len(paths))
    finished(place)
    found = []
    for path, line in zip(paths, entered, strict=True):
        line.send(request(path, b"", "GET"))
        found.append(line.read("GET").status)
    assert found == [503, 503, 200, 503]
    for line in entered:
        line.close()
