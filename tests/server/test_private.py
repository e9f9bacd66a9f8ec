"""A private model behind TorchServe: encrypted answers, and nothing in the open on the server."""

import json
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marship import Client
from marship.engines.torchserve import server
from marship.errors import (
    DecryptionError,
    InvalidInputError,
    MalformedError,
    MarshipError,
    UnsupportedMediaError,
)
from marship.private import HeClient
from marship.private.he_keys import Pair
from marship.serving.private.ckks import SecretKey
from marship.serving.private.keys import KeySet
from marship.serving.private.message import HEAD_BYTES, HeMessage
from private_runs import INPUTS, SQUARE, WEIGHTS, packaged

ROWS = np.random.default_rng(0).normal(size=(8, INPUTS))
WANTED = (ROWS @ WEIGHTS["a"]) ** 2 @ WEIGHTS["b"] + WEIGHTS["c"]


@dataclass(frozen=True)
class Served:
    """A server with a private model, what its clients have, and one that asked already."""

    home: Path
    file: Path
    other_file: Path
    keys: Path
    client: Client
    asked: HeClient


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, start: Callable[..., server.Server], store: Path
) -> Iterator[Served]:
    """Two workers, which take batches of four."""
    folder = tmp_path_factory.mktemp("private")
    done = packaged(folder, SQUARE)
    (folder / "other").mkdir()
    other = packaged(folder / "other")  # of the same name
    home = folder / "home"
    shutil.copy(done.archive, store)
    start(home)
    with Client(home, retry_s=0) as client:
        client.register("tiny.mar", workers=2, batch_size=4, max_batch_delay_ms=5)
        keys = folder / "mine" / "tiny.keys"
        asked = HeClient(done.client_file, client, keys=keys)
        assert asked.predict(ROWS) == pytest.approx(WANTED, abs=asked.file.error)
        yield Served(home, done.client_file, other.client_file, keys, client, asked)


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


class Damaged:
    """A client of the server whose questions lose a bit on their way.

    Args:
        client: The client.
        hashed: The message states the hash of what arrives.
    """

    def __init__(self, client: Client, *, hashed: bool) -> None:
        self.client, self.hashed, self.place = client, hashed, 10_000

    def predict(self, name: str, body: bytes, **given: Any) -> Any:
        """As `Client.predict`."""
        message = HeMessage.from_bytes(body)
        payload = bytearray(message.payload)
        payload[self.place] ^= 1
        changed = replace(message, payload=bytes(payload)).to_bytes()
        if not self.hashed:
            changed = body[:HEAD_BYTES] + changed[HEAD_BYTES:]
        return self.client.predict(name, changed, **given)


def with_keys(served: Served, server: object, keys: Pair) -> HeClient:
    """A client with keys that it did not make itself."""
    client = HeClient(served.file, server, check_share=0)  # type: ignore[arg-type]
    client._keys.held = keys
    return client


def bad_clients(served: Served) -> Iterator[tuple[HeClient, type[MarshipError], str]]:
    """Clients that have or do something wrong, with what they get."""
    secret, keys = served.asked._keys.get()
    public, right = served.asked._plan, (secret, keys)
    yield (HeClient(served.other_file, served.client), InvalidInputError, "that of the model")
    yield (with_keys(served, served.client, (SecretKey(public.ring), keys)),
           DecryptionError, "must decrypt with noise")  # fmt: skip
    yield (with_keys(served, Damaged(served.client, hashed=False), right),
           MalformedError, "SHA-256 that its header states")  # fmt: skip
    yield (with_keys(served, Damaged(served.client, hashed=True), right),
           MarshipError, "must")  # fmt: skip
    junk = np.random.default_rng(0).bytes(keys.size_bytes)
    yield (with_keys(served, served.client, (secret, KeySet.of(public, junk))),
           MalformedError, "evaluation keys must be")  # fmt: skip
    yield (with_keys(served, served.client, (secret, KeySet.of(public, junk[:1000]))),
           MalformedError, "must come in")  # fmt: skip


def sets(served: Served) -> set[Path]:
    """The sets of keys on the server's disk."""
    return set((served.home / "client-keys").glob("*/*"))


def test_bad_clients_are_told_and_nobody_else_is_affected(served: Served) -> None:
    """Others' files and keys, damage and junk: a typed error each, while another client asks.

    Nothing of them stays, and no worker is restarted.
    """
    with Client(served.home, retry_s=0) as client:
        before = client.describe("tiny")[0].workers
    there, is_over = sets(served), threading.Event()

    def ask() -> int:
        count = 0
        with Client(served.home, retry_s=0) as own:
            other = HeClient(served.file, own, keys=served.keys)
            while not is_over.is_set():
                assert other.predict(ROWS[:2]) == pytest.approx(WANTED[:2], abs=other.file.error)
                count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask)
        try:
            for bad, kind, said in bad_clients(served):
                with pytest.raises(kind, match=said):
                    bad.predict(ROWS[0])
        finally:
            is_over.set()
        assert other.result(60) > 0
    assert sets(served) == there
    assert not [path for one in there for path in one.iterdir() if path.name.startswith(".")]
    with Client(served.home, retry_s=0) as client:
        assert client.describe("tiny")[0].workers == before


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
