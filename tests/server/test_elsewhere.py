"""Commands that talk to a server elsewhere: by its addresses and tokens, without its home."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from marship import Client
from marship.cli import app
from marship.client.clients import ModelStatus
from marship.engines.addresses import TOKEN_VARIABLES, URL_VARIABLES
from marship.engines.torchserve import server
from marship.errors import NotRunningError, RolloutError, TLSError, TokenError, UsageError
from marship.operate.proxy import ProxySettings
from nginx import Door, free_port, in_front

Command = Callable[..., Result]


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a server's home, and an environment that names none."""
    for name in (*URL_VARIABLES.values(), *TOKEN_VARIABLES.values(), "MARSHIP_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "away"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def tokens(running: server.Server) -> dict[str, str]:
    """The shared server's, by API."""
    keys = json.loads(running.home.key_file.read_text())
    return {api: keys[api]["key"] for api in ("inference", "management")}


@pytest.fixture
def manage(running: server.Server, away: Path) -> Command:
    """Run a command at the management address, with a copy of the server's token file."""
    shutil.copy(running.home.key_file, away / "keys.json")
    where = ["--url", running.record.management_url, "--token-file", "keys.json"]
    return lambda *words: CliRunner().invoke(app, [*words, *where])


@pytest.fixture(scope="module")
def door(
    running: server.Server, echo: ModelStatus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    """The proxy in front of the shared server, with a certificate that it signed itself."""
    settings = ProxySettings(
        home=running.home.path,
        out=tmp_path_factory.mktemp("door") / "proxy",
        listen=f"127.0.0.1:{free_port()}",
        self_signed=True,
    )
    with in_front(settings, [echo.name]) as one:
        yield one


def run(*words: str | Path) -> Result:
    """The result of a command."""
    return CliRunner().invoke(app, list(map(str, words)))


def test_models_are_managed_by_address_alone(manage: Command, archives: Path) -> None:
    """Register, describe, list, scale, set the default, show the status, remove."""
    assert (archives / "lin-1.mar").is_file()
    for words in (
        ("register", "lin-1.mar", "--workers", "1"),
        ("describe", "lin"),
        ("scale", "lin", "2"),
        ("register", "lin-2.mar"),
        ("set-default", "lin", "2"),
    ):
        done = manage(*words)
        assert done.exit_code == 0, (words, done.exception, done.output)
    assert "ready" in manage("describe", "lin").output
    assert "lin-2.mar" in manage("models").output
    assert "lin-1.mar" in manage("status").output
    for version in ("1", "2"):
        assert manage("unregister", "lin", "--version", version).exit_code == 0
    assert "lin" not in manage("models").output.split()


@pytest.mark.usefixtures("echo", "away")
@pytest.mark.parametrize("given", ["flag", "plain file", "variable"])
def test_a_token_is_taken_from_a_flag_a_file_or_the_environment(
    running: server.Server, tokens: dict[str, str], given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by itself is enough; so is an address in the environment."""
    monkeypatch.setenv("MARSHIP_MANAGEMENT_URL", running.record.management_url)
    words = ["models"]
    if given == "flag":
        words += ["--token", tokens["management"]]
    elif given == "plain file":
        Path("token").write_text(f"{tokens['management']}\n")
        words += ["--token-file", "token"]
    else:
        monkeypatch.setenv("MARSHIP_MANAGEMENT_TOKEN", tokens["management"])
    done = run(*words)
    assert done.exit_code == 0, done.exception
    assert "echo.mar" in done.output


def test_an_explicit_home_wins_over_addresses_of_the_environment(
    running: server.Server, echo: ModelStatus, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a command for the server here would go elsewhere."""
    assert away.is_dir()
    for variable in URL_VARIABLES.values():
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    done = run("describe", echo.name, "--home", running.home.path)
    assert done.exit_code == 0, done.exception


def test_predictions_through_the_proxy(door: Door, tokens: dict[str, str], away: Path) -> None:
    """One request, and a folder of them, with the proxy's address and a token alone."""
    where = ["--url", door.url, "--token", tokens["inference"], "--ca", door.authority]
    done = run("predict", "echo", "--json", '"through the door"', *where)
    assert done.exit_code == 0, done.exception
    assert "through the door" in done.output
    (away / "many").mkdir()
    for number in range(3):
        (away / "many" / f"{number}.json").write_text(f'"text {number}"')
    unknown = run("predict", "echo", "many", *where)
    assert isinstance(unknown.exception, UsageError)
    assert "--version" in str(unknown.exception)
    done = run("predict", "echo", "many", "--version", "1.0", *where)
    assert done.exit_code == 0, (done.exception, done.output)
    assert "text 2" in (away / "many.predictions.csv").read_text()


def test_a_rollout_and_a_state_file_work_elsewhere(
    manage: Command, running: server.Server, client: Client, archives: Path, away: Path
) -> None:
    """Copies of the archives are read here; what the server has must be the same version."""
    copies = away / "copies"
    copies.mkdir()
    for name in ("lin-1.mar", "lin-2.mar"):
        shutil.copy(archives / name, copies)
    further = ["--inference-url", running.record.inference_url, "--model-store", str(copies)]
    Path("state.toml").write_text('[[model]]\narchive = "lin-1.mar"\nworkers = 1\n')
    done = manage("apply", "state.toml", *further)
    assert done.exit_code == 0, (done.exception, done.output)
    try:
        shutil.copy(copies / "lin-2.mar", copies / "lin-1-again.mar")
        shutil.copy(archives / "lin-1.mar", archives / "lin-1-again.mar")
        other = manage("rollout", "lin-1-again.mar", *further)
        assert isinstance(other.exception, RolloutError), other.output
        done = manage("rollout", "lin-2.mar", *further)
        assert done.exit_code == 0, (done.exception, done.output)
        (left,) = client.describe("lin", "all")
        assert left.version == "2"
    finally:
        (archives / "lin-1-again.mar").unlink()
        client.unregister("lin")


@pytest.mark.usefixtures("away")
def test_errors_of_addresses_and_tokens(
    running: server.Server, door: Door, tokens: dict[str, str], echo: ModelStatus
) -> None:
    """No server, a wrong token, an untrusted certificate, another API's address."""
    record = running.record
    right = ["--token", tokens["management"]]
    asked = ["predict", echo.name, "--json", "1"]
    inference = ["--token", tokens["inference"]]
    nobody = f"http://127.0.0.1:{free_port()}"
    for words, kind, said in (
        (["models", "--url", nobody, *right], NotRunningError, "no connection. Check the address"),
        (["models", "--url", record.management_url, "--token", "x"], TokenError, "key_file.json"),
        (["models", "--url", record.management_url], TokenError, "--token-file"),
        ([*asked, "--url", door.url, *inference], TLSError, "--ca"),
        ([*asked, "--url", record.management_url, *right], UsageError, "inference API"),
        (["models", "--url", record.inference_url, *inference], UsageError, "management API"),
        (["describe", echo.name, "--url", record.inference_url, *inference], UsageError, "8081"),
        (["register", "x", "--url", record.inference_url, *inference], UsageError, "8081"),
        (["models", "--url", record.metrics_url, *right], UsageError, "management API"),
        (
            ["models", "--url", door.url, *right, "--ca", door.authority],
            UsageError,
            "the proxy passes on predictions alone",
        ),
        (
            ["rollout", "lin-2.mar", "--url", record.management_url, *right],
            UsageError,
            "--inference-url",
        ),
        (["models", "--url", "ftp://x", *right], UsageError, "http"),
        (["models", "--url", nobody, "--home", "h"], UsageError, "--home"),
    ):
        done = run(*words)
        assert isinstance(done.exception, kind), (words, done.exception, done.output)
        assert said in str(done.exception), words
        assert "\n" not in str(done.exception)


@pytest.mark.usefixtures("away")
def test_a_wrong_file_of_tokens_or_authorities_is_a_usage_error() -> None:
    """Missing, a folder, a pipe, binary, empty, of several words, other JSON."""
    os.mkfifo("pipe")
    Path("binary").write_bytes(b"\xff\xfe")
    Path("empty").touch()
    Path("words").write_text("a b")
    Path("json").write_text('{"inference": "x"}')
    where = ["--url", "http://127.0.0.1:9"]
    for name in ("missing", ".", "pipe", "binary", "empty", "words", "json"):
        done = run("models", *where, "--token-file", name)
        assert isinstance(done.exception, UsageError), (name, done.exception)
        assert "a token file must" in str(done.exception)
        if name == "pipe":
            continue
        done = run("models", *where, "--token", "x", "--ca", name)
        assert isinstance(done.exception, UsageError), (name, done.exception)
        assert "PEM" in str(done.exception)


def test_a_shell_completes_the_models_of_a_server(
    running: server.Server, echo: ModelStatus, away: Path
) -> None:
    """Those of the home that the environment names; none, and no error, where none runs."""
    words = {"_MARSHIP_COMPLETE": "complete_bash", "COMP_WORDS": "marship describe ec"}
    for home, expected in ((running.home.path, [echo.name]), (away, [])):
        known = {**os.environ, **words, "COMP_CWORD": "2", "MARSHIP_HOME": str(home)}
        command = Path(sys.executable).with_name("marship")
        done = subprocess.run([command], env=known, capture_output=True, text=True, check=False)
        assert (done.stdout.split(), done.stderr) == (expected, "")
