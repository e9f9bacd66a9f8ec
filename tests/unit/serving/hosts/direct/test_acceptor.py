"""One address for all models: connections find their worker, and none is lost on the way."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from directly import BODY, Line, Place, request, service, until
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.slots import UNPROVEN


@pytest.fixture(scope="module")
def models(folder: Path) -> Iterator[Place]:
    """Models `a` (versions 1 and 2, 1 is the default) and `b`, each version with a worker."""
    made = Place()
    for name, version in (("a", "1"), ("a", "2"), ("b", "1")):
        made.add(service(folder, name, version), name, version)
    made.follow(a=("1", "2"), b=("1",))
    yield made
    made.close()


def who(body: bytes) -> str:
    """Which model and version gave a response of KServe's."""
    told = json.loads(body)
    return f"{told['model_name']} {told['model_version']}"


ASK = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 10], "datatype": "FP32", "data": [0.1] * 10}]}
).encode()
PATHS = {
    "/v2/models/a/infer": "a 1",
    "/v2/models/a/versions/1/infer": "a 1",
    "/v2/models/a/versions/2/infer": "a 2",
    "/v2/models/b/infer": "b 1",
}


EXPLAIN = (
    *("/explanations/{}", "/explanations/{}/1"),
    *("/v1/models/{}:explain", "/v1/models/{}/versions/1:explain"),
    *("/v2/models/{}/explain", "/v2/models/{}/versions/1/explain"),
    *("/v2/models/{}:explain", "/v2/models/{}/versions/1:explain"),
)


@pytest.mark.parametrize("path", EXPLAIN)
def test_explanations_are_not_offered(models: Place, path: str) -> None:
    """By the worker and by the acceptor, in one line, and the connection stays."""
    with models.line() as line:
        for name in ("a", "unknown"):
            line.send(request(path.format(name), ASK))
            got = line.read()
            assert (got.status, got.json()["code"]) == (501, "unsupported")
            line.send(request("/v2/models/a/infer", ASK))
            assert who(line.read().body) == "a 1"


def test_kserve_v1_answers_as_the_named_form(models: Place) -> None:
    """Of the default version and of a named one; errors have KServe's form."""
    rows = [[0.1] * 10, [0.2] * 10]
    (wanted,) = models.ask("/predictions/a", json.dumps({"input": rows}).encode()).json().values()
    body = json.dumps({"instances": rows}).encode()
    for path in ("a:predict", "a/versions/2:predict", "b:predict"):
        got = models.ask(f"/v1/models/{path}", body)
        assert (got.status, got.json()) == (200, {"predictions": wanted})
    assert models.ask("/predictions/a", body).json() == {"predictions": wanted}
    bad = models.ask("/v1/models/a:predict", b'{"instances": 1}')
    assert (bad.status, bad.json()["error"]) == (400, bad.json()["message"])
    assert models.ask("/v1/models/unknown:predict", body).status == 404
    lost = models.ask("/v1/models/a:other", body)
    assert (lost.status, "one of /v1 or /v2" in lost.json()["message"]) == (404, True)


def test_kserve_v1_tells_whether_a_model_is_ready(models: Place) -> None:
    """Of the default version and of a named one."""
    with models.line() as line:
        for path, status in (("a", 200), ("a/versions/2", 200), ("unknown", 503)):
            line.send(request(f"/v1/models/{path}", b"", "GET"))
            got = line.read()
            name = path.partition("/")[0]
            assert (got.status, got.json()) == (status, {"name": name, "ready": status == 200})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_each_request_of_a_connection_is_answered_by_the_model_it_names(
    models: Place, data: st.DataObject
) -> None:
    """Whatever the order, one after the other or pipelined, with bodies of any size."""
    paths = data.draw(
        st.lists(st.sampled_from([*PATHS, "/v2/models/c/infer"]), min_size=1, max_size=8)
    )
    pads = [data.draw(st.sampled_from([0, 0, 70_000, 300_000])) for _ in paths]
    pipelined = data.draw(st.booleans())
    with models.line() as line:
        got = []
        sent = [request(p, ASK + b" " * pad) for p, pad in zip(paths, pads, strict=True)]
        if pipelined:
            threading.Thread(target=line.send, args=(b"".join(sent),), daemon=True).start()
        for one in sent:
            if not pipelined:
                line.send(one)
            response = line.read()
            got.append(who(response.body) if response.status == 200 else response.status)
    assert got == [PATHS.get(path, 404) for path in paths]


def test_the_default_version_follows_the_engine(models: Place) -> None:
    """On connections that are open already, and back again."""
    with models.line() as line:
        for default in ("1", "2", "1"):
            models.follow(a=(default, *({"1", "2"} - {default})), b=("1",))

            def is_it(default: str = default) -> bool:
                line.send(request("/v2/models/a/infer", ASK))
                return who(line.read().body) == f"a {default}"

            until(is_it, 2.0)


def test_a_version_that_is_unregistered_is_not_seen(folder: Path, place: Place) -> None:
    """Not on a new connection either, while its worker still lives."""
    place.add(service(folder, "a", "1"), "a", "1")
    place.follow(a=("1",))
    assert place.ask("/predictions/a").status == 200
    place.follow()
    assert place.ask("/predictions/a").status == 404
    assert place.ask("/predictions/a/1").status == 404


def test_a_model_without_a_worker_is_503_and_says_when_to_retry(place: Place) -> None:
    """Its readiness too; the server lives, and is not ready."""
    assert place.ask("/predictions/x").status == 503  # the engine has not said yet what there is
    place.follow(a=("1",))
    assert place.ask("/predictions/x").status == 404
    got = place.ask("/predictions/a")
    assert (got.status, got.json()["code"], got.headers["retry-after"]) == (503, "no_worker", "1")
    assert place.ask("/v2/models/a/ready", b"", "GET").status == 503
    assert place.ask("/v2/health/live", b"", "GET").json() == {"live": True}
    assert place.ask("/v2/health/ready", b"", "GET").json() == {"ready": False}
    got = place.ask("/v2/models/x/infer", ASK)
    assert got.json()["error"] == got.json()["message"]


def test_connections_are_shared_among_workers_also_with_one_that_comes_later(
    folder: Path, loaded: Any, place: Place
) -> None:
    """The least busy gets the next one, and those that are open are levelled."""
    first = place.add(loaded)
    place.follow(m=("1.0",))
    lines = [place.line() for _ in range(8)]
    opened = [line.__enter__() for line in lines]
    for line in opened:
        line.send(request())
        assert line.read().status == 200
    assert len(first._connections) == 8
    second = place.add(service(folder))
    until(lambda: {len(first._connections), len(second._connections)} == {4})
    for line in opened:
        line.send(request())
        assert line.read().status == 200
    for each in lines:
        each.__exit__(None, None, None)
    until(lambda: place.acceptor.connections == 0)


def test_a_worker_that_leaves_gives_its_connections_back(
    folder: Path, loaded: Any, place: Place
) -> None:
    """Idle ones are answered by another worker, and nobody notices."""
    first = place.add(loaded)
    place.follow(m=("1.0",))
    with place.line() as line:
        line.send(request())
        assert line.read().status == 200
        place.add(service(folder))
        first.leave()
        until(lambda: place.seats() == 1)
        line.send(request())
        assert line.read().status == 200


def test_an_acceptor_that_dies_is_found_again(loaded: Any, place: Place) -> None:
    """Workers go on answering what they hold, and tell the next acceptor who they are."""
    place.add(loaded)
    place.follow(m=("1.0",))
    with place.line() as line:
        line.send(request())
        assert line.read().status == 200
        place.stop_acceptor()
        line.send(request())
        assert line.read().status == 200
        place.start_acceptor()
        until(lambda: place.seats() == 1)
        place.follow(m=("1.0",))
        assert place.ask().status == 200
        line.send(request("/v2/health/live", b"", "GET"))
        assert line.read("GET").status == 200


@pytest.fixture
def small(loaded: Any) -> Iterator[Place]:
    """A place for three clients."""
    made = Place(limits=Limits(connections=3), headers={"X-All": "yes"})
    made.add(loaded)
    made.follow(m=("1.0",))
    yield made
    made.close()


def test_more_clients_than_the_limit_are_refused_with_a_word(small: Place) -> None:
    """While all within it are asking something; they are answered."""
    lines = [small.line() for _ in range(3)]
    opened = [line.__enter__() for line in lines]
    for line in opened:
        line.send(request()[:-5])
    until(lambda: sum(each.is_receiving for each in list(small.workers[0]._connections)) == 3)
    with small.line() as fourth:
        got = fourth.read("GET")
        assert (got.status, got.headers["retry-after"], got.headers["x-all"]) == (503, "1", "yes")
    for line in opened:
        line.send(request()[-5:])
        assert line.read().status == 200
    for each in lines:
        each.__exit__(None, None, None)
    until(lambda: small.acceptor.connections == 0)
    assert small.ask("/predictions/m", BODY).status == 200


@pytest.mark.parametrize(
    "sent",
    [b"", b"\r\n", request("/ping", b"", "GET"), request(), request("/predictions/nobody")],
)
def test_connections_between_requests_make_room_for_others(small: Place, sent: bytes) -> None:
    """Whether they never asked, asked what the acceptor answers, or a worker."""
    idle = [Line(small.address) for _ in range(3)]
    for line in idle:
        line.send(sent)
        if len(sent) > 2:
            line.read("GET")
    for _ in range(20):
        assert small.ask().status == 200
    assert small.acceptor.connections <= 4
    assert idle[0].is_closed()
    for each in idle:
        each.close()


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /predictions/m HTTP/1.1\r\nX: ",
        b"GET /ping HTTP/1.1\r\nX: ",
        request(method="DELETE")[:-5],
        request("/ping", method="DELETE")[:-5],
    ],
)
def test_requests_that_do_not_go_on_make_room_before_idle_connections(
    small: Place, begun: bytes
) -> None:
    """Nobody knows yet that they may be sent; who has a token is served, and is not closed."""
    begins: list[Line] = []
    with small.line() as idle:
        idle.send(request())
        assert idle.read().status == 200
        for _ in range(6):
            until(lambda: small.acceptor.connections == 1 + unproven(small))
            for count in range(unproven(small) + 1, 3):
                begins.append(Line(small.address))
                begins[-1].send(begun)
                until(lambda count=count: unproven(small) == count)
            time.sleep(0.3)  # until they are not young any more
            assert small.ask().status == 200
        idle.send(request())
        assert idle.read().status == 200
    assert begins[0].is_closed()
    for line in begins:
        line.close()


def unproven(place: Place) -> int:
    """How many connections wait for the rest of a request that may not be allowed."""
    sites = (place.acceptor._own, place.workers[0]._connections)
    return sum(each.writer.state == UNPROVEN for site in sites for each in list(site))


def test_clients_that_send_nothing_make_room_for_those_that_ask(loaded: Any) -> None:
    """Whoever opens more connections than the limit loses the oldest; nobody else waits."""
    made = Place(limits=Limits(connections=20))
    try:
        made.add(loaded)
        made.follow(m=("1.0",))
        idle = [Line(made.address) for _ in range(100)]
        assert made.ask().status == 200
        assert made.acceptor.connections <= 20
        assert all(line.is_closed() for line in idle[:70])
        with made.line() as line:
            line.send(request())
            assert line.read().status == 200
        for each in idle:
            each.close()
    finally:
        made.close()
