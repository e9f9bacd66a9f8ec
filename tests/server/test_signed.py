"""With a trust folder a server runs what a trusted key signed, and nothing else."""

import asyncio
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

from marship import AsyncClient, Client
from marship.cli import app
from marship.engines.home import Home
from marship.engines.torchserve import server
from marship.errors import NotFoundError, ServerError, SignatureError, UsageError
from marship.trust.keys import PrivateKey
from marship.trust.signature import beside, sign
from signed import make_key, trusting, write

Start = Callable[..., server.Server]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    """A trusted key."""
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def trust(key: PrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that trusts it."""
    return trusting(tmp_path_factory.mktemp("t") / "trust", key).folder


@pytest.fixture(scope="module")
def signed_store(store: Path, key: PrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a signed echo in two versions, and an unsigned pair."""
    folder = tmp_path_factory.mktemp("signed-store")
    for name in ("echo", "pair"):
        shutil.copy(store / f"{name}.mar", folder)
    handler = (Path(__file__).parent / "handlers" / "echo.py").read_bytes()
    write(folder / "echo-2.mar", {"handler.py": handler}, model="echo", version="2.0")
    sign(folder / "echo.mar", key)
    sign(folder / "echo-2.mar", key)
    return folder


@pytest.fixture(scope="module")
def guarded(
    signed_store: Path, trust: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[server.Server]:
    """A server with a trust folder that loaded echo at its start."""
    one = server.start(
        server.ServeSettings(
            home=tmp_path_factory.mktemp("home"),
            model_store=signed_store,
            trust=trust,
            models=("echo.mar",),
            free_ports=True,
        )
    )
    yield one
    one.stop()
    assert not one.home.verified.exists()


@pytest.fixture
def asking(guarded: server.Server) -> Iterator[Client]:
    """A client of it."""
    with Client(guarded.home.path) as one:
        yield one


def test_models_loaded_at_startup_serve(guarded: server.Server, asking: Client) -> None:
    """It was verified and unpacked, and its copy is gone."""
    asking.wait_ready("echo")
    assert asking.predict("echo", [1])["got"] == [1]
    assert list(guarded.home.verified.iterdir()) == []
    assert guarded.home.verified.stat().st_mode & 0o777 == 0o700


def test_a_signed_archive_registers_and_outlives_its_copy(
    guarded: server.Server, asking: Client
) -> None:
    """Workers that come later need nothing but what TorchServe unpacked."""
    status = asking.register("echo-2.mar", name="echo", workers=1)
    assert status.version == "2.0"
    assert list(guarded.home.verified.iterdir()) == []
    os.kill(status.workers[0].pid, signal.SIGKILL)
    asking.scale("echo", 2, version="2.0")
    assert asking.predict("echo", [2], version="2.0")["got"] == [2]
    asking.unregister("echo", "2.0")


def test_an_unsigned_archive_is_refused(guarded: server.Server, asking: Client) -> None:
    """By both clients, with the reason, and nothing is registered or left."""
    with pytest.raises(SignatureError, match=r"pair\.mar must be signed, got no pair\.mar\.sig"):
        asking.register("pair.mar")

    async def register() -> None:
        async with AsyncClient(guarded.home.path) as client:
            await client.register("pair.mar")

    with pytest.raises(SignatureError, match=r"pair\.mar must be signed"):
        asyncio.run(register())
    assert [model.name for model in asking.models()] == ["echo"]
    assert list(guarded.home.verified.iterdir()) == []


def test_an_altered_archive_is_refused(signed_store: Path, key: PrivateKey, asking: Client) -> None:
    """The error names the file, and signing it again makes it pass; both clients agree."""
    archive = signed_store / "late.mar"
    original = (signed_store / "pair.mar").read_bytes()
    archive.write_bytes(original)
    sign(archive, key)
    archive.write_bytes((signed_store / "echo.mar").read_bytes())
    with pytest.raises(SignatureError, match="must be as it was signed, got changed: MAR-INF"):
        asking.register("late.mar", name="echo")
    archive.write_bytes(original)
    with pytest.raises(SignatureError, match="under the name that was signed, pair, got late"):
        asking.register("late.mar", name="late")
    for path in (archive, beside(archive)):
        path.unlink()


def test_the_async_client_registers_what_is_signed(guarded: server.Server) -> None:
    """It finds the trust folder in the home, as the blocking one does."""

    async def register() -> str:
        async with AsyncClient(guarded.home.path) as client:
            status = await client.register("echo-2.mar", name="echo", workers=1)
            await client.unregister("echo", status.version)
            return status.version

    assert asyncio.run(register()) == "2.0"


def test_a_registration_that_hangs_holds_others_no_longer_than_they_say(
    guarded: server.Server, asking: Client
) -> None:
    """The error names the process; once the lock is free the next one succeeds."""
    lock = Home(guarded.home.path).verified.with_suffix(".lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(
            ServerError, match=f"within 0.5 s, got it held by process {os.getpid()}"
        ):
            asking.register("echo-2.mar", name="echo", timeout_s=0.5)
    status = asking.register("echo-2.mar", name="echo", workers=1)
    asking.unregister("echo", status.version)


def test_who_goes_past_marship_finds_an_empty_store(
    guarded: server.Server, signed_store: Path
) -> None:
    """TorchServe's own API with a valid token: the model store is not what it reads."""
    with Client(guarded.home.path) as client:
        client.models()
    keys = Home(guarded.home.path).key_file.read_text()
    token = keys.split('"management"')[1].split('"key"')[1].split('"')[1]
    verified = Home(guarded.home.path).verified
    in_other_case = verified.with_name(verified.name.upper())
    in_other_case.mkdir()
    shutil.copy(signed_store / "pair.mar", in_other_case)
    up = "%2e%2e%2f" * len(verified.parts)
    for url in (
        "pair.mar",
        "echo-2.mar",
        f"file://{signed_store}/pair.mar",
        "../store/pair.mar",
        f"file://{verified}/{up}{str(signed_store / 'pair.mar')[1:].replace('/', '%2f')}",
        f"file://{verified}/%252e%252e%252f{in_other_case.name}%252fpair.mar",
        f"file://{verified}/..%5c{in_other_case.name}%5cpair.mar",
        f"file://{in_other_case}/pair.mar",
    ):
        answer = requests.post(
            f"{guarded.record.management_url}/models",
            params={"url": url, "model_name": "sneaked"},
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )
        assert answer.status_code == 404, (url, answer.text)


@pytest.mark.parametrize(
    ("models", "kind", "fault"),
    [
        (("all",), SignatureError, r"pair\.mar must be signed"),
        (("echo.mar", "pair.mar"), SignatureError, r"pair\.mar must be signed"),
        (("none.mar",), UsageError, "must lie in the model store"),
    ],
)
def test_a_start_with_an_unsigned_model_is_refused(  # noqa: PLR0913, PLR0917  fixtures and cases
    signed_store: Path,
    trust: Path,
    tmp_path: Path,
    models: tuple[str, ...],
    kind: type[Exception],
    fault: str,
) -> None:
    """Before Java starts; nothing is left."""
    began = time.monotonic()
    with pytest.raises(kind, match=fault):
        server.start(
            server.ServeSettings(
                home=tmp_path, model_store=signed_store, trust=trust, models=models, free_ports=True
            )
        )
    assert time.monotonic() - began < 10
    assert not (tmp_path / "server.json").exists()
    assert not list(tmp_path.glob("verified/*"))


def test_trust_outlives_the_server(
    start: Start, signed_store: Path, trust: Path, tmp_path: Path
) -> None:
    """The next start holds to it and says so in one line; `--no-trust` ends it for good."""
    place = ["--home", str(tmp_path), "--model-store", str(signed_store)]
    unsigned = [*place, "--models", "pair.mar", "--free-ports", "--detach"]
    start(tmp_path, trust=trust).stop()
    refused = CliRunner().invoke(app, ["serve", *unsigned])
    assert isinstance(refused.exception, SignatureError)
    told = f"archives must be signed with a key in {trust}, as at the last start"
    assert [told in line for line in refused.stderr.splitlines()] == [True]
    assert Home(tmp_path).trust() == trust
    served = CliRunner().invoke(app, ["serve", "--no-trust", *unsigned])
    assert served.exit_code == 0, served.output
    assert server.stop(tmp_path).trust is None
    assert Home(tmp_path).trust() is None


def test_a_trust_folder_that_is_gone_refuses_all(
    signed_store: Path, trust: Path, guarded: server.Server, asking: Client
) -> None:
    """The server runs on, and registers nothing until the keys are back."""
    away = trust.rename(trust.with_name("away"))
    try:
        with pytest.raises(UsageError, match="must be a folder of public keys"):
            asking.register("echo-2.mar", name="echo")
    finally:
        away.rename(trust)
    with pytest.raises(NotFoundError, match=r"must be a \.mar file in the model store"):
        asking.register("none.mar")
    assert guarded.record.model_store == str(signed_store)
