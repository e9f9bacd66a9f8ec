"""New versions tried on a real server: shadow and canary under load, without a wrong response."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from json_page import fields, run
from loads import load
from marship import Client
from marship.engines.torchserve import server
from marship.engines.trials import LEASE_S
from versions import ANSWERS, ROW, remove, versions
from waiting import until

QUICK = ("--minutes", "0.05", "--min-requests", "20", "--max-latency-ratio", "50")


@pytest.fixture
def lin(running: server.Server, archives: Path) -> Iterator[Client]:
    """Versions 1, which is the default, and 2 of `lin`, with a worker each."""
    assert archives.is_dir()
    with Client(running.home.path, retry_s=0) as client:
        for version in ("1", "2"):
            if version not in versions(client, "lin"):
                client.register(f"lin-{version}.mar", workers=1)
        client.set_default("lin", "1")
        yield client


@pytest.fixture(scope="module", autouse=True)
def _removed(client: Client) -> Iterator[None]:
    """Leave nothing for other tests."""
    yield
    remove(client, "lin")


def test_a_shadow_is_seen_and_given_to_nobody(running: server.Server, lin: Client) -> None:
    """Its differences are counted: the versions answer differently."""
    home = running.home.path
    with load(home, "lin", ROW, {"1": ANSWERS["1"]}) as tally:
        told = fields(run("shadow", "lin", "2", "--share", "1", *QUICK, "--home", home), "shadow")
    assert tally.all_correct(), tally
    (step,) = told["steps"]
    assert (told["outcome"], told["default_version"]) == ("fine", "1")
    assert step["compared"] == step["differing"] > 20
    assert step["largest"] > 1
    assert "is off by" in step["examples"][0]
    assert not lin.describe("lin", "2")[0].waiting


def test_a_canary_takes_over_under_load(running: server.Server, lin: Client) -> None:
    """No request fails, each is one of both versions', and in the end all are the new one's."""
    home = running.home.path
    words = ("canary", "lin", "2", "--steps", "0.3,1", *QUICK, "--home", home)
    with load(home, "lin", ROW, {"1": ANSWERS["1"], "2": ANSWERS["2"]}) as tally:
        told = fields(run(*words), "canary")
        before = tally.correct["1"]
        tally.wait_for_more(50)
        assert tally.correct["1"] == before
    assert tally.all_correct(), tally
    assert lin.describe("lin")[0].version == "2"
    assert (told["is_promoted"], told["default_version"]) == (True, "2")
    assert [step["share"] for step in told["steps"]] == [0.3, 1]
    assert 0.15 < told["steps"][0]["taken"] / told["steps"][0]["asked"] < 0.45


def test_a_canary_that_differs_too_much_is_over_at_once(
    running: server.Server, lin: Client
) -> None:
    """And the default version serves as before."""
    home = running.home.path
    words = ("canary", "lin", "2", "--max-differing", "0.2", "--minutes", "5", "--home", str(home))
    with load(home, "lin", ROW, {"1": ANSWERS["1"], "2": ANSWERS["2"]}) as tally:
        done = subprocess.run(
            [sys.executable, "-m", "marship", *words], capture_output=True, timeout=100, check=False
        )
        lin.predict("lin", ROW)
    assert done.returncode == 1
    assert b"lin 1 stays the default, since of 2 at most 0.2 of the responses" in done.stdout
    assert tally.all_correct(), tally
    assert lin.predict("lin", ROW) == ANSWERS["1"]


def test_a_command_that_is_killed_leaves_no_trial(running: server.Server, lin: Client) -> None:
    """Status and metrics tell of it until its lease ends; a second one is refused meanwhile."""
    home = str(running.home.path)
    words = ("canary", "lin", "2", "--steps", "1", "--minutes", "5", "--home", home)
    command = subprocess.Popen([sys.executable, "-m", "marship", *words], stderr=subprocess.DEVNULL)
    try:
        until(lambda: lin.predict("lin", ROW) == ANSWERS["2"], 30, "a canary")
        command.send_signal(signal.SIGSTOP)
        found = fields(run("status", "--home", home), "status")["trials"]
        assert [(one["name"], one["version"], one["kind"]) for one in found] == [
            ("lin", "2", "canary")
        ]
        with urlopen(f"{running.record.prometheus_url}/metrics", timeout=20) as page:  # noqa: S310
            shown = page.read().decode()
        assert 'marship_trial_share{model_name="lin",model_version="2",kind="canary"} 1' in shown
        second = subprocess.run(
            [sys.executable, "-m", "marship", "shadow", "lin", "2", "--home", home],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert b"lin must have one trial at a time, got one of 2 that runs" in second.stderr
    finally:
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
    until(lambda: lin.predict("lin", ROW) == ANSWERS["1"], 2 * LEASE_S, "the default version")
    assert fields(run("status", "--home", home), "status")["trials"] == []
