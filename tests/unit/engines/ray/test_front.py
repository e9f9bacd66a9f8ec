"""What the front does itself, without a cluster."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from ray.serve._private import http_util
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from marship.engines.ray import front, head, ingress, placing, plan
from marship.engines.ray.line import Answer, Asked
from marship.serving.hosts.direct import routes

DOCS = Path(__file__).parents[4] / "docs" / "ray.md"
NAME = b"x-request-id"


def asked(path: bytes, *headers: tuple[bytes, bytes]) -> tuple[Asked, routes.Route]:
    """A request, and its route."""
    route = routes.find(path)
    assert route is not None
    return Asked("POST", path, list(headers)), route


def failed(error: Exception, path: bytes = b"/predictions/m") -> tuple[Answer, dict[str, Any]]:
    """What a client gets for an error, and its body."""
    answer = front._failed(error, *asked(path))
    return answer, orjson.loads(answer.body)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (placing.NoReplicaError(), 503, "no_worker"),
        (TimeoutError(), 503, "no_worker"),
        (DeploymentUnavailableError(SimpleNamespace(name="m", app_name="a")), 503, "no_worker"),
        (KeyError("an application"), 503, "no_worker"),
        (ConnectionResetError(), 503, "worker_died"),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), 503, "busy"),
        (RuntimeError("received message larger than max"), 500, "internal"),
    ],
)
def test_whatever_a_replicas_call_raises_is_an_error_of_ours(
    error: Exception, status: int, code: str
) -> None:
    """JSON with a code, by KServe's paths as KServe has it; nothing of Ray's own texts."""
    for path in (b"/predictions/m", b"/v2/models/m/infer"):
        answer, body = failed(error, path)
        assert (answer.status, body["code"]) == (status, code)
        assert ("error" in body) == path.startswith(b"/v2")
        assert "larger" not in body["message"]
    ready, body = failed(error, b"/v2/models/m/ready")
    assert (ready.status, body) == (503, {"name": "m", "ready": False})


@pytest.mark.parametrize(
    ("given", "has_own"),
    [
        ([b"mine"], True),
        ([b"\xff"], True),
        ([b"a", b"b"], True),
        ([b""], False),
        ([b"7" * 201], False),
        ([], False),
    ],
)
def test_a_response_of_the_fronts_own_has_the_requests_id(
    given: list[bytes], has_own: bool
) -> None:
    """As the direct host: one that is empty or long is replaced, lines are joined."""
    request, route = asked(b"/predictions/m", *((NAME, value) for value in given))
    found = dict(front._failed(TimeoutError(), request, route).headers)[NAME]
    assert (found == b", ".join(given)) == has_own
    assert 0 < len(found) <= 200


def test_ray_sees_no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are orders to it, and it decodes some as UTF-8; the front gets them as they came."""
    monkeypatch.setattr(http_util, "RequestIdMiddleware", http_util.RequestIdMiddleware)
    ingress.hide_headers()
    seen: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], _receive: object, _send: object) -> None:
        seen.append(scope)

    whole = http_util._apply_middlewares(app, [])
    headers = [(b"X-Request-Id", b"\xff"), (b"x-session-id", b"1")]
    asyncio.run(whole({"type": "http", "headers": headers}, None, None))
    assert seen[0]["headers"] == []
    assert ingress.headers_of(seen[0]) == [(NAME, b"\xff"), (b"x-session-id", b"1")]


@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue"])
def test_expectations_that_the_front_meets_are_not_passed_on(value: bytes) -> None:
    """It has read the body; others are the direct host's to refuse."""
    request, _ = asked(b"/predictions/m", (b"expect", value))
    assert b"expect" not in request.render()
    other, _ = asked(b"/predictions/m", (b"expect", b"much"))
    assert b"\r\nexpect: much\r\n" in other.render()


class Handle:
    """A handle of Serve that knows of so many replicas; None: was told of none yet."""

    def __init__(self, count: int | None) -> None:
        self._count = count
        routing = SimpleNamespace(curr_replicas=dict.fromkeys(range(count or 0)))
        self._router = SimpleNamespace(_asyncio_router=SimpleNamespace(request_router=routing))

    def running_replicas_populated(self) -> bool:
        """Whether it was told of replicas."""
        return self._count is not None


def placed(handle: Handle, act: Callable[["asyncio.Future[int]"], object]) -> bool:
    """Whether a request is taken; `act` gets what waits for that."""

    async def run() -> bool:
        taken = asyncio.get_running_loop().create_future()
        act(taken)
        try:
            await placing.placed(handle, SimpleNamespace(_replica_result_future=taken))
        except placing.NoReplicaError:
            assert taken.cancelled()
            return False
        return True

    return asyncio.run(run())


def later(taken: "asyncio.Future[int]") -> None:
    """A replica takes the request some turns later."""
    taken.get_loop().call_later(0.05, taken.set_result, 1)


@pytest.mark.parametrize(("count", "is_taken"), [(0, False), (1, True), (None, True)])
def test_a_request_waits_for_replicas_alone_that_there_are(
    monkeypatch: pytest.MonkeyPatch, count: int | None, is_taken: bool
) -> None:
    """Where there is none it is refused at once; where Serve has not told yet, after a while."""
    assert placed(Handle(count), later) == is_taken
    monkeypatch.setattr(placing, "_LOOK_S", 0.01)
    monkeypatch.setattr(placing, "_TOLD_S", 0.02)
    assert not placed(Handle(0), lambda _taken: None)
    assert not placed(Handle(None), lambda _taken: None)
    assert placed(Handle(0), lambda taken: taken.set_result(1))


def test_a_request_that_waits_is_refused_when_the_last_replica_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not only those that come then."""
    monkeypatch.setattr(placing, "_LOOK_S", 0.01)
    handle = Handle(1)
    replicas = handle._router._asyncio_router.request_router.curr_replicas
    assert not placed(handle, lambda taken: taken.get_loop().call_later(0.05, replicas.clear))


def test_messages_between_replicas_hold_the_largest_body(tmp_path: Path) -> None:
    """On a cluster of one's own, and on one that is started as the docs say."""
    name = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    assert plan.MESSAGE_BYTES > plan.MOST_BYTES
    assert head._tuned(tmp_path)[name] == str(plan.MESSAGE_BYTES)
    assert f"export {name}={plan.MESSAGE_BYTES} " in DOCS.read_text()
