"""TorchServe as several clients change one model, and that `management` does as it does."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from management import Management, Stored
from marship import Client
from marship.engines.torchserve import registration, server
from marship.errors import LoadError, NoAnswerError
from marship.exchange.calls import Call, Flow, HttpResponse, path
from versions import remove, versions

ARCHIVES = {"echo.mar": Stored("echo", "1.0"), "echo-2.mar": Stored("echo-2", "2.0")}


class Raw(Client):
    """A client that makes calls as they are."""

    def exchange(self, call: Call) -> HttpResponse:
        """The response, be it an error."""

        def flow() -> Flow[HttpResponse]:
            token = yield from self._engine._token("management")
            answer: HttpResponse = yield call.with_token(token)
            return answer

        return self._transport.run(flow())


@pytest.fixture
def raw(running: server.Server, archives: Path) -> Iterator[Raw]:
    """Of the shared server, where no version of `lin` is."""
    assert archives.is_dir()
    with Raw(running.home.path, retry_s=0) as one:
        remove(one, "lin")
        yield one
        remove(one, "lin")


def calls(draw: random.Random) -> Iterator[Call]:
    """Changes of one model in a random order, those that TorchServe refuses among them."""
    while True:
        version = draw.choice(["1.0", "2.0", "3.0"])
        kind = draw.choice(["register", "register", "default", "unregister", "unregister any"])
        if kind == "register":
            archive = draw.choice([*ARCHIVES, "nowhere.mar"])
            url = f"registration-{draw.randrange(1 << 32):x}/{archive}"
            params = {"url": url, "model_name": "lin", "initial_workers": "0"}
            yield Call("management", "POST", "/models", {**params, "synchronous": "false"})
        elif kind == "default":
            yield Call("management", "PUT", path("models", "lin", version, "set-default"))
        elif kind == "unregister":
            yield Call("management", "DELETE", path("models", "lin", version))
        else:
            yield Call("management", "DELETE", path("models", "lin"))


LOOKS = [Call("management", "GET", path("models", "lin", *rest)) for rest in ((), ("all",))]


def told(answer: HttpResponse) -> object:
    """What of a response counts: which error, or which versions of which registrations."""
    value = json.loads(answer.body)
    if isinstance(value, list):
        versions = sorted((v["modelVersion"], v["modelUrl"], v["minWorkers"]) for v in value)
        return answer.status, versions
    return answer.status, value.get("type")


def test_the_model_of_the_server_does_as_the_server(raw: Raw) -> None:
    """Through 80 changes: each response, the default version and all versions are the same."""
    modelled = Management(ARCHIVES)
    draw = random.Random(5)  # noqa: S311  no secret
    for _, call in zip(range(80), calls(draw), strict=False):
        for one in (call, *LOOKS):
            assert told(raw.exchange(one)) == told(modelled.answer(one)), one


def test_a_failing_registration_that_is_the_default_takes_no_other_along(
    running: server.Server, raw: Raw
) -> None:
    """The good version came while the bad one loaded; it answers afterwards, alone."""
    held = running.home.path

    def register_the_good_one(_ready: int, _wanted: int) -> None:
        if versions(raw, "lin") == ["4", "4"]:
            with Client(held) as other:
                other.register("lin-1.mar", workers=1)

    with pytest.raises(LoadError, match="golden case 0 must agree"):
        raw.register("broken.mar", on_wait=register_the_good_one)
    assert versions(raw, "lin") == ["1", "1"]
    assert raw.predict("lin", [[1, 2, 3]]) == [[16, 22]]


@pytest.mark.parametrize("is_local", [True, False])
def test_a_registration_whose_response_is_lost_leaves_nothing(
    running: server.Server, raw: Raw, monkeypatch: pytest.MonkeyPatch, *, is_local: bool
) -> None:
    """Of its own; the version of another client stays. At a home, and by addresses alone."""
    raw.register("lin-1.mar", workers=1)
    tokens = json.loads(running.home.key_file.read_text())
    where = {
        "management_url": running.record.management_url,
        "management_token": tokens["management"]["key"],
    }
    with Client(running.home.path, **({} if is_local else where)) as client:
        transport = client._transport
        exchange = transport._exchange

        def losing(call: Call) -> HttpResponse:
            answer = exchange(call)
            if call.method == "POST":
                raise NoAnswerError("the response was lost")
            return answer

        monkeypatch.setattr(transport, "_exchange", losing)
        monkeypatch.setattr(registration, "_NO_RESPONSE_S", 1.0)  # the server has responded by then
        for archive in ("lin-2.mar", "lin-1.mar"):
            with pytest.raises(NoAnswerError):
                client.register(archive, workers=1)
            assert versions(raw, "lin") == ["1", "1"]
