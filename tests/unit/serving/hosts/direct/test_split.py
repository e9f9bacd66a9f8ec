"""A new version on trial at an acceptor: clients notice at most whose response they get."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from directly import BODY, JSON, Place, request, service, until
from marship.serving.handler import OnnxHandler
from marship.serving.hosts.direct.outcome import Arm, TrialFigures
from marship.serving.hosts.direct.split import MOST_COPIES
from marship.serving.hosts.direct.trial import TrialOrder
from marship.serving.message import Reply, Request
from marship.serving.streaming import StreamHandler

ASK = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 10], "datatype": "FP32", "data": [0.1] * 10}]}
).encode()
PATH = "/v2/models/a/infer"
ORDER = TrialOrder(
    owner="me", model="a", default="1", version="2", share=1.0, gives_new=True, absolute=1e-4
)
SHADOW = replace(ORDER, gives_new=False)


class Held(OnnxHandler):
    """Answers when it is told to."""

    def prepare(self) -> None:
        """Nothing was told yet."""
        self.goes = threading.Semaphore(0)

    def _reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
        for _ in requests:
            assert self.goes.acquire(timeout=20)
        return super()._reply(requests)

    def call_s(self, rows: int) -> float:  # noqa: ARG002
        """On a thread."""
        return 1.0


class Refusing(OnnxHandler):
    """Accepts nothing."""

    def decode(self, request: Request) -> Any:
        """Refuse it."""
        raise ValueError(request.body[:1])


class Counting(StreamHandler):
    """Streams as many lines as the body has bytes; each is the version's own."""

    def answers(self, requests: Sequence[Request], clock: Any) -> Iterator[dict[int, Reply]]:  # noqa: ARG002
        """A line for each byte."""
        sizes = [len(one.body) for one in requests]
        for turn in range(max(sizes)):
            yield {
                i: Reply(b"%d\n" % turn, "application/jsonl", more=turn + 1 < size)
                for i, size in enumerate(sizes)
                if turn < size
            }


class Endless(StreamHandler):
    """Streams lines for 2 s."""

    def answers(self, requests: Sequence[Request], clock: Any) -> Iterator[dict[int, Reply]]:  # noqa: ARG002
        """The same line again and again."""
        end = time.monotonic() + 2
        while time.monotonic() < end:
            time.sleep(0.01)  # as a model that computes the next part
            yield {i: Reply(b"1\n", "application/jsonl", more=True) for i in range(len(requests))}
        yield {i: Reply(b"0\n", "application/jsonl") for i in range(len(requests))}


@pytest.fixture(scope="module")
def models(folder: Path) -> Iterator[Place]:
    """Models `a` (versions 1 and 2, 1 is the default) and `b`, each version with a worker."""
    made = Place()
    for name, version in (("a", "1"), ("a", "2"), ("b", "1")):
        made.add(service(folder, name, version), name, version)
    made.follow(a=("1", "2"), b=("1",))
    yield made
    made.close()


@pytest.fixture
def beside(folder: Path, place: Place) -> Any:
    """What adds a new version of a kind beside the default one; returns its service."""

    def add(kind: type, default: type = OnnxHandler) -> Any:
        loaded = service(folder, "a", "2", kind=kind)
        place.add(service(folder, "a", "1", kind=default), "a", "1")
        place.add(loaded, "a", "2")
        place.follow(a=("1", "2"))
        return loaded

    return add


def tell(place: Place, order: TrialOrder) -> dict[str, Any]:
    """What the acceptor says to an order, as a command sends it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(10)
        line.connect(str(place.path))
        line.send(json.dumps({**asdict(order), "kind": "try"}).encode() + b"\n")
        told: dict[str, Any] = json.loads(line.recv(1 << 17))
        return told


def figures(place: Place, order: TrialOrder = ORDER) -> TrialFigures:
    """What came of a trial."""
    return TrialFigures.from_json(tell(place, order)["figures"])


@contextmanager
def trial(place: Place, order: TrialOrder = ORDER) -> Iterator[None]:
    """A trial that runs."""
    assert "figures" in tell(place, order)
    try:
        yield
    finally:
        tell(place, replace(order, share=0.0))


def who(body: bytes) -> str:
    """Which model and version gave a response of KServe's."""
    told = json.loads(body)
    return f"{told['model_name']} {told['model_version']}"


def test_a_canary_gives_the_new_versions_response_to_its_share(models: Place) -> None:
    """On a connection that stays open before, while and after a trial runs."""
    with models.line() as line:

        def ask(path: str = PATH) -> str:
            line.send(request(path, ASK))
            return who(line.read().body)

        assert ask() == "a 1"
        with trial(models):
            for number in range(1, 6):  # a copy is sent once the one before has its response
                assert ask() == "a 2"
                until(lambda number=number: figures(models).compared == number)
            assert ask("/v2/models/a/versions/1/infer") == "a 1"
            assert ask("/v2/models/b/infer") == "b 1"
            got = figures(models)
            assert (got.asked, got.taken, got.differing, got.dropped) == (5, 5, 0, 0)
            assert (got.default.requests, got.new.requests, got.new.errors) == (5, 5, 0)
            assert sum(got.new.took) == 5
        assert ask() == "a 1"


def test_a_shadow_gives_the_default_versions_response(models: Place) -> None:
    """To all; the new version gets the same requests."""
    with trial(models, SHADOW):
        assert who(models.ask(PATH, ASK).body) == "a 1"
        until(lambda: figures(models, SHADOW).compared == 1)


@settings(max_examples=30, deadline=None)
@given(
    users=st.lists(st.integers(0, 30), min_size=1, max_size=20), share=st.sampled_from([0.3, 0.6])
)
def test_a_client_stays_with_its_version(models: Place, users: list[int], share: float) -> None:
    """By its header, on connections that others use as well."""
    sticky = replace(ORDER, sticky_header="X-User", share=share)
    with trial(models, sticky), models.line() as line:
        for user in users:
            line.send(request(PATH, ASK, headers={**JSON, "X-User": str(user)}))
            version = "2" if sticky.takes({b"x-user": str(user).encode()}) else "1"
            assert who(line.read().body) == f"a {version}"


KINDS = {
    "plain": request("/predictions/a"),
    "kserve": request(PATH, ASK),
    "v1": request("/v1/models/a:predict", b'{"instances": [[1,2,3,4,5,6,7,8,9,0]]}'),
    "query": request("/predictions/a?x=1"),
    "large": request("/predictions/a", BODY + b" " * 300_000),
    "invalid": request(PATH, b"{"),
    "form": request("/predictions/a", b"body=%5B%5D", headers={"Content-Type": "text/x"}),
    "model": request("/v2/models/a", b"", "GET"),
    "ready": request("/v2/models/a/ready", b"", "GET"),
    "v1 ready": request("/v1/models/a", b"", "GET"),
    "head": request("/v2/models/a/ready", b"", "HEAD"),
    "options": request("/predictions/a", b"", "OPTIONS"),
    "method": request("/predictions/a", b"", "DELETE"),
    "explain": request("/explanations/a"),
    "chunked": (
        b"POST /predictions/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    ),
}
OWN = {"date", "x-request-id", "server-timing"}


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(set(KINDS) - {"chunked"})), max_size=4),
    last=st.sampled_from(sorted(KINDS)),
)
def test_every_request_is_answered_as_without_a_trial(
    models: Place, names: list[str], last: str
) -> None:
    """Status, headers and body, one behind the other and pipelined; a shadow is on."""
    names = [*names, last]
    methods = [KINDS[name].split(b" ")[0].decode() for name in names]

    def responses() -> list[Any]:
        with models.line() as line:
            data = b"".join(KINDS[name] for name in names)
            threading.Thread(target=line.send, args=(data,), daemon=True).start()
            found = [line.read(method) for method in methods]
        return [
            (one.status, {k: v for k, v in one.headers.items() if k not in OWN}, one.body)
            for one in found
        ]

    without = responses()
    with trial(models, SHADOW):
        assert responses() == without


def test_a_new_version_that_hangs_delays_nobody_in_a_shadow(beside: Any, place: Place) -> None:
    """It gets no more at a time than the default one; what comes late is compared."""
    held, number = beside(Held), 9
    with trial(place, SHADOW), place.line() as line:
        for _ in range(number):
            line.send(request("/predictions/a"))
            assert line.read().status == 200
        got = figures(place, SHADOW)
        assert (got.taken, got.dropped, got.new.requests) == (number, number - 1, 0)
        assert (got.new.waiting, got.default.waiting) == (1, 0)
        held.goes.release(1000)
        until(lambda: figures(place, SHADOW).compared == 1)
        got = figures(place, SHADOW)
        assert (got.differing, got.new.errors, got.default.requests) == (0, 0, number)


def test_copies_beyond_the_bound_are_not_sent(beside: Any, place: Place) -> None:
    """However many requests are under way at once."""
    held, number = beside(Held, default=Held), MOST_COPIES + 8
    default = place.workers[-2]._service
    with trial(place, SHADOW), ExitStack() as stack:
        lines = [stack.enter_context(place.line()) for _ in range(number)]
        for line in lines:
            line.send(request("/predictions/a"))
        until(lambda: figures(place, SHADOW).taken == number)
        assert figures(place, SHADOW).dropped == 8
        for one in (held, default):
            one.goes.release(1000)
        assert {line.read().status for line in lines} == {200}
        until(lambda: figures(place, SHADOW).compared == MOST_COPIES)


def test_a_new_version_that_fails_is_counted_and_not_given_in_a_shadow(
    beside: Any, place: Place
) -> None:
    """The place of the difference is told with the request's id."""
    beside(Refusing)
    with trial(place, SHADOW):
        assert place.ask("/predictions/a", headers={**JSON, "X-Request-Id": "mine"}).status == 200
        until(lambda: figures(place, SHADOW).compared == 1)
        got = figures(place, SHADOW)
        assert (got.new.errors, got.default.errors, got.differing) == (1, 0, 1)
        assert got.examples[0].startswith("request mine: status ")


@pytest.mark.parametrize("order", [ORDER, SHADOW], ids=["canary", "shadow"])
def test_streams_come_as_they_are_made_and_are_not_compared(
    beside: Any, place: Place, order: TrialOrder
) -> None:
    """As lines and as events; both versions are counted."""
    beside(Counting, Counting)
    events = {**JSON, "Accept": "text/event-stream"}
    plain = [place.ask("/predictions/a", b"abc", headers=each).body for each in (JSON, events)]
    with trial(place, order):
        for number, (headers, expected) in enumerate(zip((JSON, events), plain, strict=True), 1):
            assert place.ask("/predictions/a", b"abc", headers=headers).body == expected
            until(lambda number=number: figures(place, order).incomparable == number)
        got = figures(place, order)
        assert (got.new.requests, got.default.requests, got.new.errors) == (2, 2, 0)


@pytest.mark.parametrize("order", [ORDER, SHADOW], ids=["canary", "shadow"])
def test_who_leaves_a_stream_says_nothing_against_a_version(
    beside: Any, place: Place, order: TrialOrder
) -> None:
    """Neither version has an error of it, and nothing waits for ever."""
    beside(Endless, Endless)

    def given() -> Arm:
        found = figures(place, order)
        return found.new if order.gives_new else found.default

    with trial(place, order):
        for number in range(1, 4):
            with place.line() as line:
                line.send(request("/predictions/a", b"a", headers=JSON))
                line.socket.settimeout(10)
                assert b"200" in line.socket.recv(4096)
                reset = struct.pack("ii", 1, 0)
                line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            until(lambda number=number: given().requests == number)
        got = figures(place, order)
        assert (got.new.errors, got.default.errors) == (0, 0)
        until(lambda: figures(place, order).new.waiting == 0)


def test_a_version_that_goes_ends_its_trial(models: Place) -> None:
    """Unregistered, or made the default by somebody else: the next order is told, and no client."""
    for versions, message in ((("1",), "registered beside"), (("2", "1"), "got 2 as the default")):
        with models.line() as line:
            assert "figures" in tell(models, ORDER)
            line.send(request(PATH, ASK))
            assert who(line.read().body) == "a 2"
            models.follow(a=versions, b=("1",))
            line.send(request(PATH, ASK))
            assert who(line.read().body) == f"a {versions[0]}"
            assert message in tell(models, ORDER)["refused"]
        models.follow(a=("1", "2"), b=("1",))


def test_a_share_without_a_worker_is_served_by_the_default_version(
    folder: Path, place: Place
) -> None:
    """And counted against the new one."""
    place.add(service(folder, "a", "1"), "a", "1")
    place._loop.call_soon_threadsafe(place.acceptor.follow, {})
    place.follow(a=("1", "2"))
    place.acceptor.seats._models["a"].ready.clear()
    with trial(place):
        assert who(place.ask(PATH, ASK).body) == "a 1"
        assert (figures(place).absent, figures(place).new.requests) == (1, 0)


def test_a_second_command_is_refused_and_the_first_one_goes_on(models: Place) -> None:
    """Whatever it orders."""
    with trial(models):
        assert "one trial at a time" in tell(models, replace(ORDER, owner="you"))["refused"]
        assert who(models.ask(PATH, ASK).body) == "a 2"


def test_a_trial_is_over_with_its_acceptor_until_it_is_renewed(folder: Path, place: Place) -> None:
    """The next acceptor gives the default version first, and has other figures."""
    for version in ("1", "2"):
        place.add(service(folder, "a", version), "a", version)
    place.follow(a=("1", "2"))
    before = figures(place)
    assert who(place.ask(PATH, ASK).body) == "a 2"
    place.stop_acceptor()
    place.is_restart = True
    place.start_acceptor()
    until(lambda: place.seats("a", "1") == place.seats("a", "2") == 1)
    assert not {"figures", "refused"} & set(tell(place, ORDER))  # it knows no models yet
    place.follow(a=("1", "2"))
    assert who(place.ask(PATH, ASK).body) == "a 1"
    after = figures(place)
    assert (after.taken, after.source == before.source) == (0, False)
    assert who(place.ask(PATH, ASK).body) == "a 2"


def test_a_trial_asks_for_the_token_once(folder: Path, tmp_path: Path) -> None:
    """Without it nobody is served, and nothing is counted."""
    key = tmp_path / "key.json"
    key.write_text('{"inference": {"key": "k", "expiration time": "2999-01-01T00:00:00Z"}}')
    place = Place(key_file=key)
    try:
        for version in ("1", "2"):
            place.add(service(folder, "a", version), "a", version)
        place.follow(a=("1", "2"))
        with trial(place):
            assert place.ask("/predictions/a").status == 401
            got = place.ask("/predictions/a", headers={**JSON, "Authorization": "Bearer k"})
            assert got.status == 200
            until(lambda: figures(place).compared == 1)
            assert (figures(place).asked, figures(place).new.errors) == (1, 0)
    finally:
        place.close()


@pytest.mark.parametrize("left", [("1", "2"), ("1",)], ids=["no worker", "not registered"])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_version_that_goes_meanwhile_takes_no_client_with_it(
    is_late: bool,
    left: tuple[str, ...],
    beside: Any,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was there when the request came, and not when its worker was chosen.

    The acceptor may learn of it late: TorchServe is asked for its models now and then.
    """
    beside(OnnxHandler)
    seats = place.acceptor.seats
    served = seats.is_served

    def goes(model: str, version: str) -> bool:
        monkeypatch.setattr(seats, "is_served", (lambda *_: True) if is_late else served)
        is_served = served(model, version)
        seats._seats.pop((model, version))
        seats._models["a"] = replace(seats._models["a"], versions=left, wanted={"1": 1})
        return is_served

    monkeypatch.setattr(seats, "is_served", goes)
    with trial(place), place.line() as line:
        line.send(request(PATH, ASK))
        answer = line.read()
        assert (answer.status, who(answer.body)) == (200, "a 1")
        found = place.acceptor.seats.trials.of("a")
        assert found is not None
        until(lambda: found.figures.default.requests == 1)
        assert (found.figures.absent, found.figures.new.requests) == (1, 0)


def test_clients_that_leave_have_waited_so_long(beside: Any, place: Place) -> None:
    """Which may be longer than a response takes; their request is ended, and no copy stays."""
    held = beside(Held)
    with trial(place):
        with place.line() as line:
            line.send(request("/predictions/a"))
            until(lambda: figures(place).taken == 1)
            reset = struct.pack("ii", 1, 0)  # a FIN alone would say that it still reads
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        until(lambda: not place.acceptor._own)
        held.goes.release(100)
        until(lambda: not (place.acceptor._split._copies or figures(place).new.waiting))
        new = figures(place).new
        assert (new.requests, new.errors, sum(new.took), new.waiting) == (1, 0, 1, 0)
        assert figures(place).compared == 0
