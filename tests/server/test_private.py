"""A private model behind TorchServe: encrypted answers, and nothing in the open on the server."""

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from marship import Client
from marship.engines.torchserve import server
from marship.errors import UnsupportedMediaError
from marship.private import HeClient
from private_runs import INPUTS, SQUARE, WEIGHTS, packaged

ROWS = np.random.default_rng(0).normal(size=(8, INPUTS))
WANTED = (ROWS @ WEIGHTS["a"]) ** 2 @ WEIGHTS["b"] + WEIGHTS["c"]


@dataclass(frozen=True)
class Served:
    """A server with a private model, what its clients have, and one that asked already."""

    home: Path
    file: Path
    client: Client
    asked: HeClient


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, start: Callable[..., server.Server], store: Path
) -> Iterator[Served]:
    """Two workers, which take batches of four."""
    folder = tmp_path_factory.mktemp("private")
    done = packaged(folder, SQUARE)
    home = folder / "home"
    shutil.copy(done.archive, store)
    start(home)
    with Client(home, retry_s=0) as client:
        client.register("tiny.mar", workers=2, batch_size=4, max_batch_delay_ms=5)
        asked = HeClient(done.client_file, client, keys=folder / "mine" / "tiny.keys")
        assert asked.predict(ROWS) == pytest.approx(WANTED, abs=asked.file.error)
        yield Served(home, done.client_file, client, asked)


def test_torchserves_own_address_answers_too(served: Served) -> None:
    """With batches, from many clients with keys of their own: TorchServe passes lists on."""
    record = json.loads((served.home / "server.json").read_text())
    token = json.loads((served.home / "key_file.json").read_text())["inference"]["key"]

    def ask(_: int) -> np.ndarray:
        with Client(inference_url=record["inference_url"], inference_token=token) as client:
            return HeClient(served.file, client).predict(ROWS[:3])

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(ask, range(4)):
            assert found == pytest.approx(WANTED[:3], abs=served.asked.file.error)


def test_plain_values_are_refused(served: Served) -> None:
    """By TorchServe's worker as by the handler alone."""
    with pytest.raises(UnsupportedMediaError, match="must be asked encrypted"):
        served.client.predict("tiny", ROWS[:1])


def forms(value: float) -> list[bytes]:
    """A number as it could stand in a file."""
    return [
        *(np.array(value, kind).tobytes() for kind in ("<f8", ">f8")),
        *(f"{value:.{digits}f}"[:8].encode() for digits in (6, 8, 12)),
    ]


def test_the_server_keeps_nothing_that_can_be_read(served: Served) -> None:
    """Its home with logs, temporary files, archives and keys is searched for what was asked."""
    served.asked.predict(ROWS)
    with pytest.raises(UnsupportedMediaError):
        served.client.predict("tiny", ROWS[:1])  # also what was refused is not kept
    secret, _ = served.asked._keys.held or pytest.fail("no keys")
    values = [float(value) for value in (*ROWS[:2].ravel(), *WANTED[:2].ravel())]
    wanted = {form for value in values for form in forms(value)}
    wanted |= {row.astype("<f4").tobytes() for row in ROWS}
    wanted |= {secret.dump()[place : place + 32] for place in range(64, 512, 64)}
    searched = [path for path in served.home.rglob("*") if path.is_file()]
    names = {path.relative_to(served.home).parts[0] for path in searched}
    assert {"logs", "tmp", "client-keys"} <= names
    for path in searched:
        data = path.read_bytes()
        assert not [form for form in wanted if form in data], path


def test_keys_of_clients_lie_in_the_home(served: Served) -> None:
    """Private for the server, and in no temporary folder."""
    store = served.home / "client-keys"
    found = [path for path in store.rglob("*") if path.is_file()]
    assert len(found) > 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
