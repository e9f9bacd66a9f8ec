"""A disk that is full, a model store that is read-only, and a clock that jumps, under load."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from figures import Figures
from loads import Tally, two_loads
from marship import Client
from marship.engines.home import Home
from marship.engines.torchserve import server
from marship.errors import RolloutError, ServerError
from marship.operate.rollout import rollout
from namespaces import served
from small_disk import run_on
from versions import ANSWERS, ROW, versions
from watching import wait_ready, workers

Amount = Callable[[float, float], float]

TIMEOUT_S = 20.0
DISK_MB = 8
SMALL_DISK = f'mount -t tmpfs -o size={DISK_MB}m none "$0"'
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && ! touch "$1/x"'


def assert_went_on(tallies: tuple[Tally, Tally], deaths: int) -> None:
    """Nothing wrong or lost, at most one error for each killed worker, none with retries."""
    no_retry, retrying = tallies
    assert not no_retry.wrong + no_retry.lost, no_retry
    assert no_retry.failed.total() <= deaths, no_retry
    assert retrying.all_correct(), retrying


def fill(file: IO[bytes]) -> None:
    """Write until the disk is full."""
    while True:
        file.write(bytes(4096))


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Keep a folder's file system full until the block ends."""
    filler = folder / "filler"
    with filler.open("wb", 0) as file, pytest.raises(OSError, match="No space left"):
        fill(file)
    try:
        yield
    finally:
        filler.unlink()


def lose_a_worker(client: Client, home: Home) -> float:
    """Kill one of two; seconds until both are ready."""
    worker = workers(home.require_running())[0]
    os.kill(worker.pid, signal.SIGKILL)
    return wait_ready(client, "lin", 2, {worker.pid})


def test_the_disk_is_full(archives: Path, tmp_path: Path, amount: Amount, figures: Figures) -> None:
    """With home, logs and temporary folder on it: serving goes on, new versions are refused.

    A worker that dies is restarted. When there is space again, new versions can be registered.
    """
    times, slowest_s = int(amount(1, 5)), 0.0
    with served(SMALL_DISK, tmp_path / "home", archives) as home, Client(home.path) as client:
        client.register("lin-1.mar", name="lin", workers=2)
        with two_loads(home.path, "lin", ROW, ANSWERS, TIMEOUT_S) as tallies:
            for _ in range(times):
                with filled(home.path):
                    with pytest.raises(ServerError, match=r"Failed to save model: lin-2\.mar"):
                        client.register("lin-2.mar", name="lin", workers=1)
                    with pytest.raises(RolloutError, match="1 is the default as before"):
                        rollout(client, "lin-2.mar")
                    slowest_s = max(slowest_s, lose_a_worker(client, home))
                    assert versions(client, "lin") == ["1", "1"]
                client.register("lin-2.mar", name="lin", workers=1)
                client.unregister("lin", "2")
    seen = f"{times} workers killed, back after at most {slowest_s:.1f} s"
    figures.add(f"disk full, {times} times; without retries", tallies[0], seen)
    figures.add("the same; with retries", tallies[1])
    assert_went_on(tallies, times)


def test_no_server_starts_on_a_full_disk(archives: Path, tmp_path: Path) -> None:
    """One line names the file that did not fit, and no process is left."""
    words = f'"$1" -m marship serve --home "$0" --model-store {archives} --free-ports --detach'
    done = run_on(
        tmp_path / "home",
        64,
        f'touch "$0/start.lock"; head -c 1M /dev/zero > "$0/x"; {words}',
        sys.executable,
    )
    assert done.returncode == 1
    assert ".gitignore must fit on the disk, got: no space left" in done.stderr


def test_the_model_store_is_read_only(
    archives: Path, tmp_path: Path, amount: Amount, figures: Figures
) -> None:
    """Versions are registered, rolled out and removed as usual: nothing is written there."""
    times = int(amount(1, 4))
    with served(READ_ONLY, tmp_path / "home", archives) as home, Client(home.path) as client:
        client.register("lin-1.mar", name="lin", workers=1)
        with two_loads(home.path, "lin", ROW, ANSWERS, TIMEOUT_S) as tallies:
            for turn in range(times):
                rollout(client, f"lin-{'21'[turn % 2]}.mar")
    figures.add(f"model store read-only, {times} rollouts; without retries", tallies[0])
    figures.add("the same; with retries", tallies[1])
    assert_went_on(tallies, 0)


def fake_clock(folder: Path) -> dict[str, str]:
    """Variables of processes whose clock is off by what a file says, and the file."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert found, "this test needs libfaketime: apt-get install libfaketime"
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as a clock that is set leaves it
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # of old C libraries: each wait would poll
    }


PREDICT = """
import sys
from pathlib import Path
from marship import Client
with Client(Path(sys.argv[1])) as client:
    print(client.predict("lin", [[1, 2, 3]]))
"""


def predict(home: Home, clock: dict[str, str]) -> object:
    """The response that a new client with that clock gets."""
    command = [sys.executable, "-c", PREDICT, str(home.path)]
    environment = {**os.environ, **clock}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def clock(tmp_path: Path) -> dict[str, str]:
    """Such variables; the file shifts the clock by 0 s."""
    (tmp_path / "clock").write_text("+0")
    return fake_clock(tmp_path)


@pytest.fixture
def jumping(
    start: Callable[..., server.Server], archives: Path, tmp_path: Path, clock: dict[str, str]
) -> Iterator[Home]:
    """The home of a server with that clock."""
    assert archives.is_dir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.items():
            patch.setenv(name, value)
        one = start(tmp_path / "home")
    yield one.home
    one.stop()


def test_the_clock_jumps(
    jumping: Home, clock: dict[str, str], amount: Amount, figures: Figures
) -> None:
    """An hour ahead expires the tokens, and clients renew them; an hour back changes nothing.

    Holds for clients whose clock jumped too, and for clients whose clock did not.
    """
    home, file = jumping, Path(clock["FAKETIME_TIMESTAMP_FILE"])
    times, renewed = int(amount(1, 4)), 0

    def key() -> str:
        return json.loads(home.key_file.read_text())["inference"]["key"]

    with Client(home.path) as client:
        client.register("lin-1.mar", name="lin", workers=2)
        with two_loads(home.path, "lin", ROW, ANSWERS, TIMEOUT_S) as tallies:
            for turn in range(times):
                for jump_s in (4000 * (turn + 1), -4000):
                    before = key()
                    file.write_text(f"{jump_s:+d}")
                    time.sleep(2)  # libfaketime reads the file once a second
                    assert predict(home, clock) == ANSWERS["1"]
                    renewed += key() != before
                    assert (key() != before) == (jump_s > 0)
                    lose_a_worker(client, home)
    seen = f"{renewed} new tokens, {2 * times} workers killed"
    figures.add(
        f"clock set {2 * times} times, by an hour and more; without retries", tallies[0], seen
    )
    figures.add("the same; with retries", tallies[1])
    assert_went_on(tallies, 2 * times)
