"""Versions take over under load without a lost request, broken ones never; servers as declared."""

import asyncio
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from loads import load
from marship import AsyncClient, Client
from marship.cli import app
from marship.engines.torchserve import server
from marship.errors import (
    NotFoundError,
    NotRunningError,
    RolloutError,
    ServerError,
    UsageError,
)
from marship.operate.rollout import RolloutListener, rollout
from versions import ANSWERS, ROW, remove, versions

Start = Callable[..., server.Server]


@pytest.fixture
def lin(client: Client, archives: Path) -> Client:
    """A client of a server where version 1 of `lin` answers, with one worker, and no other is."""
    assert archives.is_dir()
    there = versions(client, "lin")
    if "1" not in there:
        client.register("lin-1.mar", workers=1)
    client.set_default("lin", "1")
    for version in set(there) - {"1"}:
        client.unregister("lin", version)
    return client


@pytest.fixture(scope="module", autouse=True)
def _removed(client: Client) -> Iterator[None]:
    """Leave nothing for other tests."""
    yield
    remove(client, "lin")


class Told(RolloutListener):
    """Remembers what was told, and may interrupt."""

    def __init__(self, interrupt_at: str = "") -> None:
        self.done: dict[str, str] = {}
        self._interrupt_at = interrupt_at

    def on_step(self, step: str) -> None:
        """Ctrl-C at a step."""
        if step == self._interrupt_at:
            raise KeyboardInterrupt

    def on_done(self, step: str, said: str) -> None:
        """Remember."""
        self.done[step] = said


def test_a_rollout_under_load_loses_nothing(running: server.Server, lin: Client) -> None:
    """Every answer is version 1's or version 2's, none fails, and only version 2 is left."""
    told = Told()
    with load(running.home.path, "lin", ROW, ANSWERS) as tally:
        done = rollout(lin, "lin-2.mar", watcher=told)
        after = tally.correct["1"]
        tally.wait_for_more(100)
    assert set(tally.correct) == {"1", "2"}, tally
    assert tally.correct["1"] == after > 0
    assert (done.old.version, done.new.version, done.new.ready) == ("1", "2", 1)
    assert versions(lin, "lin") == ["2", "2"]
    assert list(told.done) == ["register", "replay", "default", "drain", "unregister"]
    assert "golden cases replayed, largest difference" in told.done["replay"]


@pytest.mark.parametrize(
    ("archive", "step", "reason"),
    [
        ("broken.mar", "register", "golden case 0 must agree"),
        ("wrong.mar", "replay", "golden case 0 must agree within .* difference of 1"),
    ],
)
def test_a_broken_version_never_serves(
    running: server.Server, lin: Client, archive: str, step: str, reason: str
) -> None:
    """A worker that refuses to load, or wrong outputs: unregistered, and no request is lost."""
    with (
        load(running.home.path, "lin", ROW, ANSWERS) as tally,
        pytest.raises(
            RolloutError, match=rf"at step {step}: .*{reason}.* 1 is the default as before, "
        ),
    ):
        rollout(lin, archive)
    assert tally.correct["1"] == tally.sent, tally
    assert versions(lin, "lin") == ["1", "1"]


def test_a_probe_that_fails_and_one_that_succeeds(lin: Client, tmp_path: Path) -> None:
    """The first rolls back; with the second the new version takes over, and the old is kept."""
    probe = tmp_path / "probe.json"
    probe.write_text("[[1, 2]]")
    with pytest.raises(RolloutError, match=r"at step probe: .*as before, 2 is not registered\."):
        rollout(lin, "lin-2.mar", probe=probe)
    assert versions(lin, "lin") == ["1", "1"]
    probe.write_text("[[1, 2, 3]]")
    home = str(lin.home.path)
    done = CliRunner().invoke(
        app, ["rollout", "lin-2", "--home", home, "--probe", str(probe), "--keep-old"]
    )
    assert done.exit_code == 0, done.output
    assert "lin 2 is the default; 1 is kept" in done.output
    assert versions(lin, "lin") == ["2", "1", "2"]
    with pytest.raises(UsageError, match=r"not registered, got lin 2\. Package it with another"):
        rollout(lin, "lin-2.mar")


def test_ctrl_c_after_the_switch_brings_the_old_version_back(
    running: server.Server, lin: Client
) -> None:
    """Under load; the new one finishes its requests before it is unregistered."""
    told = Told(interrupt_at="drain")
    with load(running.home.path, "lin", ROW, ANSWERS) as tally, pytest.raises(KeyboardInterrupt):
        rollout(lin, "lin-2.mar", watcher=told)
    assert tally.correct.total() == tally.sent, tally
    assert told.done["rollback"] == "1 is the default as before, 2 is not registered."
    assert versions(lin, "lin") == ["1", "1"]


def test_what_cannot_be_rolled_out_is_an_error(client: Client, archives: Path) -> None:
    """A model that is not there, an archive elsewhere, a probe that is no file."""
    with pytest.raises(NotFoundError, match=r"marship register lin-2\.mar"):
        rollout(client, "lin-2.mar", name="nobody")
    with pytest.raises(UsageError, match="name of a file in the model store"):
        rollout(client, str(archives / "lin-2.mar"))
    with pytest.raises(UsageError, match="must be a file with a request for the new version"):
        rollout(client, "lin-2.mar", probe=archives)


def test_draining_waits_for_what_runs_and_what_waits(client: Client, archives: Path) -> None:
    """Two slow requests of the old version, which use no processor, finish before it is removed."""
    assert archives.is_dir()
    client.register("naps.mar", workers=1)
    client.register("naps-2.mar", name="naps", workers=1)
    answers: list[str] = []

    def ask() -> None:
        with Client(client.home.path, retry_s=0) as one:
            answers.append(one.predict("naps", b"1.7").decode())

    try:
        asking = [threading.Thread(target=ask) for _ in range(2)]
        for thread in asking:
            thread.start()
        time.sleep(0.5)  # TorchServe says how many requests wait, not that one is handled
        client.set_default("naps", "2.0")
        with pytest.raises(ServerError, match=r"within 0.1 s, got 1 requests waiting"):
            client.drain("naps", "1.0", timeout_s=0.1)
        client.drain("naps", "1.0")
        client.unregister("naps", "1.0")
        for thread in asking:
            thread.join(5)
        assert answers == ['{"version": "1.0"}'] * 2
    finally:
        remove(client, "naps")


def test_a_killed_worker_loses_nothing(running: server.Server, lin: Client) -> None:
    """Kill -9 of one of two under load: with retries every request succeeds."""
    worker = lin.scale("lin", 2).workers[0]
    with load(running.home.path, "lin", ROW, ANSWERS, threads=6, retry_s=20) as tally:
        tally.wait_for_more(100)
        os.kill(worker.pid, signal.SIGKILL)
        tally.wait_for_more(200)
    assert tally.correct["1"] == tally.sent, tally


def test_requests_of_a_dead_worker_are_retried(client: Client, archives: Path) -> None:
    """Two requests of one batch: one client gets the error, the other one retries."""
    assert archives.is_dir()
    status = client.register("naps.mar", workers=1, batch_size=2, max_batch_delay_ms=1000)

    async def ask() -> list[object]:
        home = client.home.path
        async with AsyncClient(home, retry_s=0) as no_retry, AsyncClient(home) as retrying:
            asking = [
                asyncio.create_task(one.predict("naps", b"2")) for one in (no_retry, retrying)
            ]
            await asyncio.sleep(2)  # after the batch's delay of 1 s, while it takes 4 s
            os.kill(status.workers[0].pid, signal.SIGKILL)
            return await asyncio.gather(*asking, return_exceptions=True)

    try:
        error, answer = asyncio.run(ask())
    finally:
        remove(client, "naps")
    assert isinstance(error, ServerError)
    assert str(error).startswith("Worker died")
    assert answer == b'{"version": "1.0"}'


STATE = """
[[model]]
archive = "lin-{version}.mar"
workers = 1
"""


@pytest.fixture
def own(start: Start, archives: Path, tmp_path: Path) -> server.Server:
    """A server without models."""
    assert archives.is_dir()
    return start(tmp_path / "home")


@contextmanager
def exchanged(archive: Path) -> Iterator[None]:
    """Meanwhile there is another archive of this name, model and version."""
    kept = archive.read_bytes()
    with zipfile.ZipFile(archive, "a") as zipped:
        zipped.writestr("more.txt", b"")
    yield
    archive.write_bytes(kept)


def test_a_declared_set_is_reached_and_reached_again_after_a_crash(
    own: server.Server, archives: Path, tmp_path: Path
) -> None:
    """Told first, done, nothing to do; a new version; and all again when a killed server returns.

    An archive that was exchanged under a running version is refused.
    A client that was there before the crash goes on. Without its models a server does not start.
    """
    home, file = own.home.path, tmp_path / "state.toml"

    def call(*words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--home", str(home)])

    def applied(*words: str) -> str:
        done = call("apply", str(file), *words)
        assert done.exit_code == 0, (done.output, done.exception)
        return " ".join(done.output.split())

    serve = ["serve", "--state", str(file), "--detach", "--free-ports"]
    serve += ["--model-store", str(archives)]
    with Client(home) as client:
        file.write_text(STATE.format(version=1))
        assert "register lin 1 from lin-1.mar, workers: 1" in applied("--dry-run")
        assert client.models() == []
        applied()
        assert client.predict("lin", ROW) == ANSWERS["1"]
        assert applied().endswith("nothing to do")
        with exchanged(archives / "lin-1.mar"):
            refused = call("apply", str(file))
        assert f"{file}, line 2 must name an archive as it was" in str(refused.exception)
        file.write_text(STATE.format(version=2))
        assert "keep lin 1 not in the file; --prune removes it" in applied("--dry-run")
        with load(home, "lin", ROW, ANSWERS) as tally:
            applied("--prune")
        assert set(tally.correct) == {"1", "2"}, tally
        assert tally.correct.total() == tally.sent
        assert versions(client, "lin") == ["2", "2"]
        os.kill(own.record.pid, signal.SIGKILL)
        own.process.wait()
        done = call(*serve)
        assert done.exit_code == 0, (done.output, done.exception)
        assert client.predict("lin", ROW) == ANSWERS["2"]
        server.stop(home)
        file.write_text(STATE.format(version=9))
        done = call(*serve)
        assert f"{file}, line 2: " in str(done.exception)
        assert "lin-9.mar must be a .mar file" in str(done.exception)
        with pytest.raises(NotRunningError):
            server.status(home)
