"""Registering with a trust folder: what becomes of the verified copy, step by step."""

from contextlib import suppress
from pathlib import Path

import pytest

from homes import of_a_server
from marship.engines.addresses import Target
from marship.engines.engine import ModelStatus, Registration, Wait
from marship.engines.home import Home
from marship.engines.torchserve import models
from marship.engines.torchserve.access import Access
from marship.errors import MarshipError, ServerError, UsageError
from marship.exchange.calls import Call, Flow, HttpResponse, Pause, Step, Work
from marship.trust import vault
from marship.trust.signature import sign
from signed import make_key, trusting, write

NO_MODEL = HttpResponse(404, {}, b'{"code": 404, "type": "ModelNotFoundException", "message": "m"}')


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """The home of a server that trusts a key, with an archive that it signed."""
    key = make_key(tmp_path)
    found = of_a_server(tmp_path, trust=str(trusting(tmp_path / "trust", key).folder))
    sign(write(tmp_path / "lin.mar"), key)
    vault.open_vault(found.verified)
    return found


class Registering:
    """A registration under way, whose steps are taken one by one."""

    def __init__(self, home: Home) -> None:
        wanted = Registration("lin.mar")
        self._flow: Flow[ModelStatus] = models.register(Access(Target(home.path)), wanted, Wait(1))
        self.at: Step = next(self._flow)

    def go_on(self, answer: object = None) -> None:
        """Take the next step."""
        done = self.at.run() if isinstance(self.at, Work) else answer
        self.at = self._flow.send(done)

    def go_to_post(self) -> None:
        """Up to TorchServe's being told."""
        while not (isinstance(self.at, Call) and self.at.method == "POST"):
            self.go_on(NO_MODEL)

    def fail(self) -> None:
        """The server does not respond to the next call, whichever that is."""
        with pytest.raises(ServerError, match="does not answer"):
            self._flow.throw(ServerError("it does not answer"))

    def end(self) -> None:
        """Nobody requests the rest."""
        self._flow.close()


def test_a_copy_goes_if_the_server_fails_before_the_call(home: Home) -> None:
    """Between verifying and registering, too, nothing stays in the vault."""
    one = Registering(home)
    while not isinstance(one.at, Call):
        one.go_on()
    assert (home.verified / "lin.mar").is_file()
    one.fail()
    assert list(home.verified.iterdir()) == []


def test_each_registration_of_a_file_has_a_copy_of_its_own(home: Home) -> None:
    """A second one waits for the first; TorchServe finds the copy for both."""
    first, second = Registering(home), Registering(home)
    first.go_to_post()
    second.go_on()  # its own copy is verified
    for _ in range(3):
        assert isinstance(second.at, Pause)
        second.go_on()
    assert (home.verified / "lin.mar").is_file()
    first.go_on(HttpResponse(200, {}, b"{}"))
    assert not (home.verified / "lin.mar").exists()
    second.go_to_post()
    assert (home.verified / "lin.mar").is_file()
    for one in (first, second):
        one.end()
    assert list(home.verified.iterdir()) == []


def test_nobody_waits_while_an_archive_is_verified(home: Home) -> None:
    """One whose copying hangs leaves the others alone, and finds its turn afterwards."""
    slow, quick = Registering(home), Registering(home)
    assert isinstance(slow.at, Work)
    while not (isinstance(quick.at, Call) and quick.at.method == "POST"):
        assert not isinstance(quick.at, Pause)
        quick.go_on(NO_MODEL)
    quick.go_on(HttpResponse(200, {}, b"{}"))
    slow.go_to_post()
    assert (home.verified / "lin.mar").is_file()
    for one in (slow, quick):
        one.end()
    assert list(home.verified.iterdir()) == []


def test_a_copy_that_was_given_up_comes_to_nothing(home: Home) -> None:
    """A cancelled task's thread goes on; it reaches no place that TorchServe reads."""
    given_up, other = Registering(home), Registering(home)
    work = given_up.at
    assert isinstance(work, Work)
    other.go_to_post()
    shown = (home.verified / "lin.mar").stat()
    given_up.end()
    with suppress(MarshipError, OSError):
        work.run()
    assert (home.verified / "lin.mar").stat() == shown
    other.end()
    assert list(home.verified.iterdir()) == []


def test_what_another_client_registered_meanwhile_stays(home: Home) -> None:
    """The server says that there is such a version by now; the client does not unregister it."""
    late = Registering(home)
    late.go_to_post()
    said = b'{"code": 409, "type": "ConflictStatusException", "message": "it is registered."}'
    late.go_on(HttpResponse(409, {}, said))
    assert isinstance(late.at, Call)
    assert (late.at.method, late.at.path) == ("GET", "/models/lin/all")
    with pytest.raises(ServerError, match="it is registered"):
        late.go_on(NO_MODEL)


@pytest.mark.parametrize("workers", [-1, models.MOST_WORKERS + 1, 100_000])
def test_more_workers_than_a_machine_has_room_for_are_refused(home: Home, workers: int) -> None:
    """Before the server is called: it would start one process after the other, and never end."""
    access = Access(Target(home.path))
    flows = [
        models.scale(access, "lin", workers, version=None, wait=Wait(1)),
        models.register(access, Registration("lin.mar", workers=workers), Wait(1)),
    ]
    for flow in flows:
        with pytest.raises(UsageError, match=f"workers must be from 0 to 256, got {workers}"):
            next(flow)
