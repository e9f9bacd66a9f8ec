"""A server in production, over unix sockets, as its processes, files and clients show it."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from marship import AsyncClient, Client
from marship.engines.torchserve import config, server
from marship.errors import NotRunningError, UsageError
from marship.operate.proxy import ProxySettings
from nginx import free_port, in_front

Start = Callable[..., server.Server]
SNAPSHOT = {"models": {"echo": {"1.0": {"defaultVersion": True, "marName": "echo.mar"}}}}
HIDDEN = {"DATABASE_PASSWORD": "x", "JAVA_TOOL_OPTIONS": "-Dx=y", "TS_LOAD_MODELS": "all"}
SOCKETS = {
    "http://127.0.0.1:8080": "unix:$$MARSHIP_HOME$$/inference.sock",
    "http://127.0.0.1:8081": "unix:$$MARSHIP_HOME$$/management.sock",
}


@pytest.fixture(scope="module")
def hardened(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    """Started where an earlier run left a snapshot, from an environment with secrets."""
    place = tmp_path_factory.mktemp("hardened")
    snapshot = place / "home" / "logs" / "config" / "20990101000000000-shutdown.cfg"
    snapshot.parent.mkdir(parents=True)
    (place / "home" / "start.lock").touch()
    snapshot.write_text(f"model_snapshot={json.dumps(SNAPSHOT)}\nload_models=all\n")
    source = place / "config.properties"
    text = config.PACKAGED.read_text()
    for port, path in SOCKETS.items():
        text = text.replace(port, path)
    source.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**HIDDEN, "LICENCE": "x", "TS_CONFIG_FILE": str(snapshot)}.items():
            patch.setenv(name, value)
        yield start(
            place / "home",
            config=source,
            profile="production",
            keep_env=("LICENCE",),
            no_direct=True,  # sockets alone: no port for predictions
        )


def test_what_it_shows_to_its_workers_and_to_others(hardened: server.Server) -> None:
    """A filtered environment, files for its owner alone, and nothing of an earlier run."""
    home = hardened.home.path
    with Client(home) as client:
        assert client.models() == []
        (worker,) = client.register("echo.mar", workers=1).workers
    java = psutil.Process(hardened.record.pid)
    for process in (java, psutil.Process(worker.pid)):
        seen = process.environ()
        assert "LICENCE" in seen
        assert not {*HIDDEN, "TS_CONFIG_FILE"} & set(seen)
    assert Path(java.cwd()) == home
    words = java.cmdline()
    assert Path(words[words.index("-cp") + 1]).name == "*"  # and not the folder it runs in
    assert home.stat().st_mode & 0o777 == 0o700
    by_java = [home / "key_file.json", home / "logs" / "server.log", home / "logs" / "workers.log"]
    for path in (*by_java, *home.glob("*.sock"), *(home / "tmp").rglob("*")):
        assert path.is_symlink() or not path.stat().st_mode & 0o077, path


def test_clients_and_the_proxy_reach_it_over_its_sockets(
    hardened: server.Server, tmp_path: Path
) -> None:
    """Both clients; nginx; and when it has ended, nothing of the sockets is left."""
    home = hardened.home
    assert {path.name for path in home.path.glob("*.sock")} == {"inference.sock", "management.sock"}
    with Client(home.path) as client:
        client.register("echo.mar", name="reached", workers=1)
        assert client.predict("reached", bytes(1 << 20)) == bytes(1 << 20)
        assert asyncio.run(ask(home.path)) == 2
        listen = f"127.0.0.1:{free_port()}"
        settings = ProxySettings(
            home=home.path, out=tmp_path / "proxy", listen=listen, self_signed=True
        )
        with in_front(settings, ["reached"]) as door:
            key = json.loads(home.key_file.read_text())["inference"]["key"]
            asked = {"Authorization": f"Bearer {key}", "Content_Type": "application/json"}
            assert door.ask("POST", "/predictions/reached", b"3", **asked).json()["got"] == 3
    (home.path / "inference.sock").rename(home.path / "away.sock")
    with Client(home.path) as late, pytest.raises(NotRunningError, match=r"inference\.sock"):
        late.ping()
    (home.path / "away.sock").rename(home.path / "inference.sock")
    hardened.stop()
    assert not list(home.path.glob("*.sock"))


async def ask(home: Path) -> int:
    """What the model got."""
    async with AsyncClient(home) as client:
        await client.models()
        return (await client.predict("reached", 2))["got"]


def test_it_does_not_start_where_others_may_write(
    start: Start, store: Path, tmp_path: Path
) -> None:
    """The error names the folder, and no process was started."""
    store.chmod(0o777)
    try:
        with pytest.raises(UsageError, match=f"chmod go-w {store}"):
            start(tmp_path / "home", profile="production")
    finally:
        store.chmod(0o700)
    assert not (tmp_path / "home" / "server.json").exists()
