"""A home's tokens go to the home's own server, over real sockets, and to nobody else."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from homes import of_a_server
from marship import Client
from marship.engines.addresses import Target
from marship.engines.home import Home
from marship.engines.torchserve.access import Access
from marship.errors import TokenError, UsageError
from marship.exchange.calls import Call

REFUSAL = (400, {"code": 400, "type": "InvalidKeyException", "message": "m"})
OF_THE_PROXY = (401, {"code": "token", "message": "m"})
SIDES = ("inference", "management", "API")


@dataclass
class Curious:
    """A server that keeps what it is told, and refuses every token."""

    url: str = ""
    answer: tuple[int, object] = REFUSAL
    told: list[str | None] = field(default_factory=list)


@pytest.fixture
def curious() -> Iterator[Curious]:
    """Start it."""
    told = Curious()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.told.append(self.headers.get("Authorization"))
            status, value = told.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    yield told
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with tokens."""
    ends = {"expiration time": "2099-01-01T00:00:00Z"}
    keys = {side: {"key": f"{side}-secret", **ends} for side in SIDES}
    (tmp_path / "key_file.json").write_text(json.dumps(keys))
    return Home(tmp_path)


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("answer", [REFUSAL, OF_THE_PROXY])
def test_another_address_gets_no_token(
    home: Home, curious: Curious, runs: bool, answer: tuple[int, object]
) -> None:
    """Whatever it responds; the error says what to pass."""
    curious.answer = answer
    if runs:
        of_a_server(home.path)
    for side in ("inference", "management"):
        with (
            Client(home.path, **{f"{side}_url": curious.url}) as client,
            pytest.raises(TokenError, match=f"Pass {side}_token, set MARSHIP_{side.upper()}_TOKEN"),
        ):
            client.ping() if side == "inference" else client.models()
    assert set(curious.told) == {None}


def test_the_servers_own_address_may_be_given(home: Home, curious: Curious) -> None:
    """What it has in its record is as good as found there: its token goes, and is renewed."""
    of_a_server(home.path, inference_url=curious.url, management_url=curious.url)
    url = f"{curious.url}/"
    with (
        Client(home.path, inference_url=url, management_url=url) as client,
        pytest.raises(TokenError, match="got none that it accepts"),
    ):
        client.ping()
    assert curious.told == ["Bearer inference-secret", "Bearer API-secret"]


def test_a_token_is_not_renewed_at_another_address(home: Home, curious: Curious) -> None:
    """The key for new tokens stays here where the management address is that of another server."""
    of_a_server(home.path, inference_url=curious.url)
    with (
        Client(home.path, management_url=curious.url) as client,
        pytest.raises(TokenError),
    ):
        client.ping()
    assert curious.told == ["Bearer inference-secret"]


def test_given_tokens_go_where_they_are_sent(home: Home, curious: Curious) -> None:
    """Who passes both means it."""
    with (
        Client(home.path, inference_url=curious.url, inference_token="given") as client,
        pytest.raises(TokenError, match="got one that it refuses"),
    ):
        client.ping()
    assert curious.told == ["Bearer given"]


@pytest.mark.parametrize("token", ["sekret\r", "sekret\nX-More: y", "two sekret", "sekrèt"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with Windows' line ends gives such a one, and the error went to a log with it."""
    monkeypatch.setenv("MARSHIP_MANAGEMENT_TOKEN", token)
    with pytest.raises(UsageError, match="must be one word") as caught:
        Client(management_url="http://127.0.0.1:1")
    assert "sekr" not in str(caught.value)


def test_addresses_are_those_of_the_server_that_runs_now(home: Home) -> None:
    """After a restart on other ports, whichever question read the home again."""
    access = Access(Target(home.path, {"inference": "http://127.0.0.1:7"}))
    models = Call("management", "GET", "/models")
    for port in (8, 9):
        of_a_server(home.path, management_url=f"http://127.0.0.1:{port}")
        assert access.url(models) == f"http://127.0.0.1:{port}/models"
        access.not_reachable("http://127.0.0.1:8")
        of_a_server(home.path, management_url="http://127.0.0.1:9")
        assert not access._is_homes("inference")
