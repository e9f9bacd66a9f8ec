"""The page for Prometheus of a real server, and what is told when a worker dies."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import requests

import marship
from directly import ARCHIVE, BODY, JSON
from marship.client import Client
from marship.engines.torchserve.server import Server
from prometheus import promtool, samples
from served import bearer, serving, write_model
from waiting import until

OF_M = 'model_name="m",model_version="1.0"'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two workers of a model, and one of an archive of an earlier version."""
    folder = tmp_path_factory.mktemp("prometheus")
    store = folder / "store"
    store.mkdir()
    (store / "earlier.mar").write_bytes(ARCHIVE.read_bytes())
    marship.package(write_model(folder), marship.PackageSettings(name="m", model_store=store))
    with serving(folder / "home", store) as started, Client(home=started.home.path) as client:
        client.register("m.mar", workers=2)
        client.register("earlier.mar", name="earlier", workers=1)
        yield started


def page(server: Server) -> str:
    """What Prometheus reads."""
    got = requests.get(f"{server.record.prometheus_url}/metrics", timeout=20)
    assert got.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return got.text


def ask(server: Server, url: str | None, path: str = "/predictions/m", body: bytes = BODY) -> int:
    """The status of a request."""
    head = {"Authorization": bearer(server), **JSON}
    return requests.post(f"{url}{path}", body, headers=head, timeout=20).status_code


def test_requests_by_all_ways_are_counted_once(server: Server) -> None:
    """Direct and through TorchServe, well and refused, and of an earlier version's archive."""
    direct, own = server.record.direct_url, server.record.inference_url
    before = samples(page(server))
    for url in (direct, direct, own):
        assert ask(server, url) == 200
    assert ask(server, direct, body=b"[[1,") == 400
    assert ask(server, own, "/predictions/earlier") == 200

    def counted(name: str) -> float:
        return samples(page(server)).get(name, 0) - before.get(name, 0)

    times = "marship_request_duration_seconds_count"
    wanted = {
        f"marship_requests_total{{{OF_M}}}": 4,
        f'{times}{{{OF_M},code="ok"}}': 3,
        f'{times}{{{OF_M},code="malformed"}}': 1,
        f'marship_errors_total{{{OF_M},code="malformed"}}': 1,
        f'marship_request_queue_seconds_count{{{OF_M},code="ok"}}': 2,  # TorchServe has its own
    }
    # a worker counts a request, and then its times
    until(lambda: {name: counted(name) for name in wanted} == wanted, 20, "four requests", 0.2)
    earlier = 'marship_requests_total{model_name="earlier",'
    until(lambda: earlier in page(server), 20, "the report of the earlier one", 0.2)
    code, said = promtool(["check", "metrics"], page(server).encode())
    assert code in (0, 3), said  # 3: names that Prometheus would not choose
    assert "marship" not in said


def test_counts_never_go_back_when_workers_die(server: Server, client: Client) -> None:
    """One is killed: its counts stay, its death is counted and logged with its name."""
    name = f"marship_requests_total{{{OF_M}}}"
    most = samples(page(server)).get(name, 0) + 20
    for _ in range(20):
        assert ask(server, server.record.direct_url) == 200
    before = until(
        lambda: found if (found := samples(page(server)))[name] >= most else None, 20, "20"
    )
    victim = client.describe("m")[0].workers[0].pid
    os.kill(victim, signal.SIGKILL)
    death = f'marship_worker_deaths_total{{{OF_M},cause="signal"}}'
    seen: list[dict[str, float]] = []

    def has_died() -> bool:
        seen.append(samples(page(server)))
        return seen[-1].get(death) == 1

    until(has_died, 20, "the death", 0.05)
    assert seen[-1][f"marship_workers_wanted{{{OF_M}}}"] == 2
    assert min(found[f"marship_workers{{{OF_M}}}"] for found in seen) < 2
    until(lambda: samples(page(server))[f"marship_workers{{{OF_M}}}"] == 2, 60, "another one", 0.2)
    again = samples(page(server))
    sums = [n for n in before if (n.startswith("marship_") and "_total{" in n) or "_bucket" in n]
    assert len(sums) > 100
    assert not [n for n in sums if again[n] < before[n]]
    words = [sys.executable, "-m", "marship", "logs", "--home", str(server.home.path)]
    told = subprocess.run([*words, "--model", "m"], capture_output=True, text=True, check=True)
    assert f"worker {victim} of m 1.0 died: " in told.stdout
    assert "another one is started" in told.stdout
    assert "Torch worker started" not in told.stdout


def test_an_end_that_is_wanted_is_no_death(server: Server, client: Client) -> None:
    """Scaled down by marship or by another program, and unregistered."""
    ready, died = (
        f"marship_workers{{{OF_M}}}",
        f'marship_worker_deaths_total{{{OF_M},cause="signal"}}',
    )
    before = samples(page(server)).get(died, 0)
    keys = json.loads(server.home.key_file.read_text())
    head = {"Authorization": f"Bearer {keys['management']['key']}"}
    one = f"{server.record.management_url}/models/m?min_worker=1&max_worker=1&synchronous=true"
    assert requests.put(one, headers=head, timeout=20).ok
    wanted = f"marship_workers_wanted{{{OF_M}}}"

    def has(workers: int) -> bool:
        found = samples(page(server))
        return found[ready] == found[wanted] == workers

    until(lambda: has(1), 20, "one worker", 0.2)
    for workers in (2, 1, 2):  # to load takes longer than an end is looked at
        client.scale("m", workers)
        until(partial(has, workers), 20, "the workers", 0.2)
    client.unregister("earlier")
    gone = 'marship_workers{model_name="earlier"'
    until(lambda: gone not in page(server), 20, "the version's end", 0.2)
    found = samples(page(server))
    assert found.get(died, 0) == before
    assert not [name for name in found if "deaths" in name and "earlier" in name]


def test_another_acceptor_goes_on_with_the_page(server: Server) -> None:
    """The address stays open while the acceptor is replaced, and so do its counts."""
    deaths = [name for name in samples(page(server)) if "deaths" in name]
    assert deaths
    acceptor = server.record.direct_pid
    children = Path(f"/proc/{acceptor}/task/{acceptor}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    until(lambda: set(deaths) <= set(samples(page(server))), 20, "the next one's page", 0.2)
    found = until(lambda: samples(page(server)), 20, "samples")
    assert found[f"marship_requests_total{{{OF_M}}}"] >= 24


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the server."""
    with Client(home=server.home.path) as made:
        yield made
