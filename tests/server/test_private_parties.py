"""A model of three parties behind TorchServe: right answers, faults, nothing plain on a disk."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper

from marship import Client
from marship.engines.torchserve.server import Server
from marship.errors import MalformedError, MarshipError, PartyError, ReplayError
from marship.private import MpcClient
from marship.serving.formats.codec import OCTETS_TYPE
from marship.serving.private.mpc import boxes, ring
from marship.serving.private.mpc.identity import KEY_VARIABLE
from served import serving
from trios import Trio, open_outputs, package
from waiting import until

ROWS = np.random.default_rng(7).normal(size=(4, 6))


@dataclass
class Deployment:
    """A server with party 0, and the processes of the others."""

    trio: Trio
    server: Server
    folder: Path
    parties: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, number: int, archive: Path | None = None) -> None:
        """Start party 1 or 2, with its archive or another, and wait until it listens."""
        command = [sys.executable, "-m", "marship", "party"]
        path, (key, _) = archive or self.trio.packed.archives[number], self.trio.keys[number]
        out = self.folder / f"party{number}.out"
        with out.open("wb") as told, (self.folder / f"party{number}.log").open("ab") as log:
            self.parties[number] = subprocess.Popen(
                [*command, path, "--key", key], stdout=told, stderr=log
            )
        until(lambda: out.read_bytes().startswith(b"party"), 30, f"party {number} must listen")

    def stop(self, number: int) -> None:
        """End a party at once."""
        self.parties[number].kill()
        self.parties[number].wait()

    def asked(self, url: str | None = None) -> np.ndarray:
        """What a client gets, without retries."""
        with Client(self.server.home.path, inference_url=url, retry_s=0) as client:
            return MpcClient(self.trio.packed.client_file, client).predict(ROWS)

    def is_right(self, url: str | None = None) -> bool:
        """Whether that is what the open model gives."""
        return bool(np.abs(self.asked(url) - open_outputs(self.trio.model, ROWS)).max() < 0.01)

    def recovered(self) -> bool:
        """Whether answers are right again after a fault."""
        try:
            return self.is_right()
        except MarshipError:
            return False


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three parties in three processes."""
    folder = tmp_path_factory.mktemp("parties")
    trio = package(folder / "made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(trio.keys[0][0]))
        with serving(folder / "home", folder / "made" / "store") as server:
            one = Deployment(trio, server, folder)
            try:
                for number in (1, 2):
                    one.start(number)
                with Client(server.home.path) as client:
                    client.register("shared.party0.mar", workers=1)
                yield one
            finally:
                for number in one.parties:
                    one.stop(number)


def test_both_addresses_give_the_open_models_outputs(deployed: Deployment) -> None:
    """TorchServe's frontend, and the worker's own."""
    assert deployed.is_right(deployed.server.record.inference_url)
    assert deployed.is_right(deployed.server.record.direct_url)


def test_plain_inputs_are_refused(deployed: Deployment) -> None:
    """With what to do, and without a word of them in the response."""
    with (
        Client(deployed.server.home.path, retry_s=0) as client,
        pytest.raises(MalformedError, match="plain inputs are refused") as caught,
    ):
        client.predict("shared", ROWS)
    assert str(ROWS[0, 0])[:6] not in str(caught.value)


@pytest.mark.parametrize("number", [1, 2])
def test_a_killed_party_ends_requests_with_one_error(deployed: Deployment, number: int) -> None:
    """503 and its name, until it is there again; no worker is restarted for it."""
    with Client(deployed.server.home.path) as client:
        before = client.describe("shared")[0].workers
        deployed.stop(number)
        with pytest.raises(PartyError, match=r"party [12] must"):
            deployed.asked()
        deployed.start(number)
        until(deployed.recovered, 20, "the parties must compute again")
        assert client.describe("shared")[0].workers == before


def held(*pids: int) -> list[tuple[int, int]]:
    """Open files and threads of processes."""
    processes = map(psutil.Process, pids)
    return [(one.num_fds(), one.num_threads()) for one in processes]


@pytest.mark.parametrize("number", [1, 2])
def test_a_party_that_hangs_is_reported_in_time(deployed: Deployment, number: int) -> None:
    """503 within its five seconds, and another session once it goes on.

    At the worker and at the other party no more is open then than before.
    """
    with Client(deployed.server.home.path) as client:
        (worker,) = client.describe("shared")[0].workers
        others = int(worker.pid or 0), deployed.parties[3 - number].pid
        until(deployed.recovered, 20, "a session")
        before = held(*others)
        os.kill(deployed.parties[number].pid, signal.SIGSTOP)
        try:
            with pytest.raises(PartyError, match=r"party [12] must"):
                deployed.asked()
            assert client.describe("shared")[0].workers == (worker,)
        finally:
            os.kill(deployed.parties[number].pid, signal.SIGCONT)
        until(deployed.recovered, 30, "the parties must compute again")
        until(lambda: held(*others) <= before, 20, "nothing must be left open")


def test_a_party_with_another_packing_is_refused_by_name(
    deployed: Deployment, tmp_path: Path
) -> None:
    """The same model and keys, packaged again: its shares are others; the old one is taken back."""
    other = package(tmp_path / "again", deployed.trio.model, keys=deployed.trio.keys)
    deployed.stop(2)
    deployed.start(2, other.packed.archives[2])
    until(lambda: "must have the model of party" in fault(deployed), 20, "the reason")
    deployed.stop(2)
    deployed.start(2)
    until(deployed.recovered, 20, "the parties must compute again")


def fault(deployed: Deployment) -> str:
    """What a client is told."""
    try:
        deployed.asked()
    except PartyError as error:
        return str(error)
    return ""


def test_a_party_does_not_start_with_anothers_key(deployed: Deployment) -> None:
    """One line, and nothing listens: it could only lie about its number."""
    command = [sys.executable, "-m", "marship", "party", deployed.trio.packed.archives[1]]
    command += ["--key", deployed.trio.keys[2][0]]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode
    assert "must be that of party 2" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert deployed.is_right()


def test_a_replayed_request_is_refused_alone(deployed: Deployment) -> None:
    """409 for the same bytes, at both addresses; others are answered, and with other bytes."""
    until(deployed.recovered, 20, "a session")
    station = deployed.trio.stations[0]
    body, _, _ = boxes.seal(ring.encode(ROWS), station.sizes, station.program.cards)
    record = deployed.server.record
    answers = []
    for url in (record.inference_url, record.direct_url, record.inference_url):
        with Client(deployed.server.home.path, inference_url=url, retry_s=0) as client:
            try:
                answers.append(client.predict("shared", body, content_type=OCTETS_TYPE))
            except ReplayError as error:
                answers.append(error)
    assert [type(one) for one in answers] == [bytes, ReplayError, ReplayError]
    assert deployed.is_right()


def test_a_killed_worker_comes_back_into_a_session(deployed: Deployment) -> None:
    """The others see its end, and take the next one."""
    with Client(deployed.server.home.path) as client:
        (worker,) = client.describe("shared")[0].workers
        os.kill(int(worker.pid or 0), signal.SIGKILL)
        until(deployed.recovered, 60, "a new worker must compute with the others")


def plain_forms(deployed: Deployment) -> list[bytes]:
    """Inputs, outputs and weights as they would lie in a file: at least two values of each."""
    weights = [
        numpy_helper.to_array(tensor).astype(np.float64).ravel()
        for tensor in onnx.load(deployed.trio.model).graph.initializer
    ]
    arrays = [*ROWS, *deployed.asked(), *open_outputs(deployed.trio.model, ROWS), *weights]
    forms = []
    for array in arrays:
        values = np.asarray(array, np.float64)
        for words in (values, values.astype(np.float32), ring.encode(values)):
            forms += [words[n : n + 2].tobytes() for n in range(len(words) - 1)]
        forms += [f"{value:.5f}".encode() for value in values]
    return forms


def test_nothing_plain_lies_on_a_disk(deployed: Deployment) -> None:
    """Inputs, outputs and weights, as floats, fixed point words or text.

    Neither in the server's home, its logs and temporary files, nor in archives, nor in what the
    other parties log.
    """
    forms = plain_forms(deployed)
    made = deployed.folder / "made" / "model.onnx"
    assert any(form in made.read_bytes() for form in forms)  # the open model has its weights
    files = [path for path in deployed.folder.rglob("*") if path.is_file() and path != made]
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        assert not [form for form in forms if form in data], path
    assert not list(deployed.folder.rglob("core*"))


def test_it_is_called_experimental(deployed: Deployment) -> None:
    """By every party that starts."""
    assert b"experimental" in (deployed.folder / "party1.log").read_bytes()
