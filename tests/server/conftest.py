"""Real TorchServe on free ports: tokens on, a private home and a private temporary folder."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marship import Client
from marship.client.clients import ModelStatus
from marship.engines.torchserve import server
from versions import write_versions

HANDLERS = Path(__file__).parent / "handlers"
REPOSITORY = Path(__file__).parents[2]


def write_archive(
    store: Path, name: str, handler: str, *, version: str = "1.0", config: str | None = None
) -> None:
    """Write `<name>.mar` with one of the handlers, as torch-model-archiver lays it out."""
    model = {"modelName": name, "modelVersion": version, "handler": f"{handler}.py"}
    if config is not None:
        model["configFile"] = "model-config.yaml"
    manifest = {"runtime": "python", "model": model, "archiverVersion": "0.12.0"}
    with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
        archive.write(HANDLERS / f"{handler}.py", f"{handler}.py")
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        if config is not None:
            archive.writestr("model-config.yaml", config)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with one archive for each handler, and two in two versions."""
    folder = tmp_path_factory.mktemp("store")
    for handler in HANDLERS.glob("*.py"):
        write_archive(folder, handler.stem, handler.stem)
    for name in ("echo", "naps"):
        write_archive(folder, f"{name}-2", name, version="2.0")
    write_archive(folder, "pair", "echo", config="minWorkers: 2\nmaxWorkers: 2\n")
    write_archive(folder, "brief", "naps", config="responseTimeout: 1\nstartupTimeout: 120\n")
    return folder


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """The model store, with the versions of the model `lin` in it."""
    write_versions(store, tmp_path_factory.mktemp("lin"))
    return store


Start = Callable[..., server.Server]


@pytest.fixture(scope="session")
def start(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a server of one's own; what still runs in the end is stopped."""
    started: list[server.Server] = []

    def run(home: Path | None = None, **settings: object) -> server.Server:
        place = home or tmp_path_factory.mktemp("home")
        one = server.start(
            server.ServeSettings(home=place, model_store=store, free_ports=True, **settings)
        )
        started.append(one)
        return one

    yield run
    for one in started:
        if one.home.running():
            one.stop()


@pytest.fixture(scope="session")
def running(start: Start) -> server.Server:
    """A server that tests share."""
    return start()


@pytest.fixture(scope="session")
def client(running: server.Server) -> Iterator[Client]:
    """A client of the shared server, without retries."""
    with Client(running.home.path, retry_s=0) as one:
        yield one


@pytest.fixture(scope="session")
def echo(client: Client) -> ModelStatus:
    """The model `echo`, registered with one worker."""
    return client.register("echo.mar", workers=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the reader's code in it, as a checkout has it."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("handlers", "training"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copy(REPOSITORY / "config.properties", folder)
    (folder / "model_store").mkdir()
    return folder
