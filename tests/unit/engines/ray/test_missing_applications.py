"""A front without a cluster: what it answers for versions whose applications are gone."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.requests import Request

from marship.engines.ray import binding, node, placing
from marship.engines.ray.front import Front
from marship.engines.ray.line import Answer, Asked
from marship.engines.ray.table import Table, TableEntry

ENTRY = TableEntry(
    app="here", archive="m.mar", digest="d", registration="r", files=None, batch_size=1,
    max_batch_delay_ms=1, given_batch_size=None, given_delay_ms=None, timeout_s=1.0, streams=False,
    minimum=1, maximum=1,
)  # fmt: skip


class Handle:
    """An application that answers everything."""

    @property
    def ask(self) -> "Handle":
        """Its method."""
        return self

    async def remote(self, asked: Asked) -> Answer:
        """A response that names the request."""
        return Answer(200, [(b"content-type", b"text/plain")], asked.target)


def handle_of(app: str) -> Handle:
    """As Serve does it."""
    if app == "gone":
        raise RayServeException(f"Application '{app}' does not exist.")
    return Handle()


async def taken_at_once(_handle: Handle, _response: object) -> None:
    """The version has a replica that is free."""


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Front:
    """One on this machine."""
    monkeypatch.setattr(serve, "get_app_handle", handle_of)
    monkeypatch.setattr(node, "address", lambda: "127.0.0.1")
    monkeypatch.setattr(binding, "keep_to", lambda _: None)
    monkeypatch.setattr(placing, "placed", taken_at_once)
    return Front(None)


def request(target: str) -> Request:
    """A request without a body."""
    scope: dict[str, Any] = {
        "type": "http", "method": "GET", "path": target, "raw_path": target.encode(),
        "query_string": b"", "headers": [(b"host", b"h")],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    return Request(scope, receive)


def test_a_version_without_an_application_takes_no_other_with_it(front: Front) -> None:
    """Its requests get 503, and all others their answers, also when a front starts with it."""
    table = Table().put("m", "1", ENTRY).put("m", "2", replace(ENTRY, app="gone"))

    async def ask() -> list[tuple[int, bytes]]:
        await front.reconfigure(table.to_json())
        targets = ("/predictions/m", "/predictions/m/1", "/predictions/m/2", "/v2/health/ready")
        answers = [await front(request(target)) for target in targets]
        await front.reconfigure(table.default("m", "2").to_json())
        answers.append(await front(request("/v2/health/ready")))
        return [(answer.status_code, bytes(answer.body)) for answer in answers]

    found = asyncio.run(ask())
    assert [status for status, _ in found] == [200, 200, 503, 200, 503]
    assert found[0][1] == b"/predictions/m"
    assert orjson.loads(found[2][1])["code"] == "no_worker"


def test_a_default_that_is_no_version_is_not_ready(front: Front) -> None:
    """One line in place of a traceback: so an earlier marship may have left a table."""
    table = Table().put("m", "1", ENTRY).default("m", "2")

    async def ask() -> int:
        await front.reconfigure(table.to_json())
        return (await front(request("/v2/health/ready"))).status_code

    assert asyncio.run(ask()) == 503
