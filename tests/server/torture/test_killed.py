"""Workers and servers are killed under load."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from figures import Figures
from loads import Tally, two_loads
from marship import Client
from marship.cli import app
from marship.engines.torchserve import server
from versions import ANSWERS, ROW
from waiting import until
from watching import wait_gone, wait_ready, workers

Amount = Callable[[float, float], float]

KILL_EVERY_S = 5.0
READY_AGAIN_S = 10.0
TIMEOUT_S = 60.0
DIED = ("Worker died", "the worker must live until it has responded")
WORKERS = 2


@pytest.fixture(scope="module")
def own(
    start: Callable[..., server.Server], archives: Path, tmp_path_factory: pytest.TempPathFactory
) -> server.Server:
    """A server whose workers no other test uses."""
    assert archives.is_dir()
    return start(tmp_path_factory.mktemp("killed") / "home")


def kill(processes: list[psutil.Process]) -> set[int]:
    """Send SIGKILL."""
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    return {process.pid for process in processes}


def kill_often(one: server.Server, client: Client, times: int, most: int) -> tuple[int, float]:
    """Kill ready workers, at most `most` at a time, every 5 s.

    A worker that loads is not killed: TorchServe would wait longer before each further attempt.

    Returns:
        How many were killed, and the seconds from the last kill until all are ready again.
    """
    dead: set[int] = set()
    for turn in range(times):
        if turn:
            time.sleep(KILL_EVERY_S)  # the rate of kills is the test's subject
        (status,) = client.describe("lin")
        serving = {worker.pid for worker in status.workers if worker.ready} - dead
        there = [process for process in workers(one.record) if process.pid in serving]
        dead |= kill(there[:most])
    return len(dead), wait_ready(client, "lin", WORKERS, dead)


def count_deaths(tally: Tally) -> int:
    """The requests that failed with a worker's death; no other error is allowed."""
    deaths = sum(n for text, n in tally.failed.items() if text.startswith(DIED))
    assert deaths == tally.failed.total(), tally
    return deaths


@pytest.mark.parametrize("most", [1, WORKERS])
def test_workers_are_killed(
    own: server.Server, amount: Amount, figures: Figures, most: int
) -> None:
    """A crash fails only the request that the worker was running; a retry succeeds."""
    times = int(amount(2 if most == 1 else 1, 13))
    with Client(own.home.path) as client:
        lin = client.register("lin-1.mar", name="lin", workers=WORKERS)
        with two_loads(own.home.path, "lin", ROW, ANSWERS, TIMEOUT_S) as (no_retry, retrying):
            retrying.wait_for_more(50)
            killed, seconds = kill_often(own, client, times, most)
        client.unregister("lin")
    case = f"{most} of {WORKERS} workers killed every {KILL_EVERY_S:g} s, {killed} deaths"
    figures.add(
        f"{case}; without retries", no_retry, f"full service {seconds:.1f} s after the last"
    )
    figures.add("the same; with retries", retrying)
    assert not no_retry.wrong + no_retry.lost, no_retry
    assert count_deaths(no_retry) <= killed * lin.batch_size, no_retry
    assert retrying.all_correct(), retrying
    assert seconds < READY_AGAIN_S


BATCH_TIMEOUT_S = 10.0


def test_workers_that_fill_batches_are_killed(
    own: server.Server, amount: Amount, figures: Figures
) -> None:
    """TorchServe loses a batch that is being filled when its worker dies: clients time out.

    A lost request cannot be retried in time, so clients with and without retries get a timeout;
    no response is wrong, and later requests succeed.
    """
    times = int(amount(1, 13))
    with Client(own.home.path) as client:
        lin = client.register("lin-1.mar", name="lin", workers=WORKERS, profile="throughput")
        with two_loads(own.home.path, "lin", ROW, ANSWERS, BATCH_TIMEOUT_S) as tallies:
            tallies[1].wait_for_more(50)
            killed, seconds = kill_often(own, client, times, WORKERS)
        client.unregister("lin")
    case = f"the same with batches of up to {lin.batch_size}, {killed} deaths"
    for tally, row in zip(
        tallies, (f"{case}; without retries", "the same; with retries"), strict=True
    ):
        figures.add(row, tally, f"full service {seconds:.1f} s after the last")
        assert not tally.wrong, tally
        assert all(re.search("must respond within", text) for text in tally.lost), tally
        assert tally.lost.total() <= killed * lin.batch_size
        assert tally.slowest_s < BATCH_TIMEOUT_S + READY_AGAIN_S
    assert not tallies[1].failed, tallies[1]
    assert count_deaths(tallies[0]) <= killed * lin.batch_size, tallies[0]
    assert seconds < READY_AGAIN_S


STATE = f"""
[[model]]
archive = "lin-1.mar"
name = "lin"
workers = {WORKERS}
"""


def test_the_server_is_killed(
    archives: Path, tmp_path: Path, amount: Amount, figures: Figures
) -> None:
    """`marship serve --state` restores everything; with retries no request fails.

    Every second time a worker is loading when its server dies.
    """
    home, state = tmp_path / "home", tmp_path / "state.toml"
    state.write_text(STATE)
    words = ["serve", "--state", str(state), "--home", str(home), "--model-store", str(archives)]

    def serve() -> float:
        began = time.monotonic()
        done = CliRunner().invoke(app, [*words, "--detach", "--free-ports"])
        assert done.exit_code == 0, (done.output, done.exception)
        return time.monotonic() - began

    def kill_server(*, while_loading: bool = False) -> server.ServerRecord:
        record = server.status(home)
        if while_loading:
            kill(workers(record)[:1])
            time.sleep(1.3)  # TorchServe waits 1 s, and a worker loads for longer than the rest
        os.kill(record.pid, signal.SIGKILL)
        until(lambda: not record.group.is_alive(), 60, "the end of the server")
        return record

    times, away_s = int(amount(1, 6)), 0.0
    serve()
    try:
        with two_loads(home, "lin", ROW, ANSWERS, TIMEOUT_S) as (no_retry, retrying):
            for turn in range(times):
                retrying.wait_for_more(50)
                before = kill_server(while_loading=turn % 2 == 1)
                away_s = max(away_s, serve())
                assert workers(before) == []
            retrying.wait_for_more(50)
        ready = wait_gone(kill_server())
        serve()
        loading = wait_gone(kill_server(while_loading=True)) if times > 1 else 0.0
    finally:
        if (left := server.Home(home).record()) is not None:
            left.group.kill()
    ended = f"; by themselves its workers end after {ready:.1f} s"
    ended += f", one that loads after {loading:.0f} s" if loading else ""
    figures.add(
        f"server killed and started again, {times} times; without retries",
        no_retry,
        f"away for {away_s:.1f} s{ended}",
    )
    figures.add("the same; with retries", retrying)
    assert not no_retry.wrong, no_retry
    assert retrying.all_correct(), retrying
    assert ready < 10
    assert loading < 60
