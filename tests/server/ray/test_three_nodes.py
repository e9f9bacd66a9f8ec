"""Three nodes: one dies under load, a version changes under load, and replicas follow the load."""

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen, run

import pytest

from three_nodes import NODES, Network
from versions import write_versions

CLIENTS = 16
OLD, NEW = '{"output":[[16.0,22.0]]}', '{"output":[[32.0,44.0]]}'


def _has_networks() -> bool:
    """Whether this machine lets us make network namespaces: root in a container may not."""
    ip, name = shutil.which("ip"), f"probe-{os.getpid()}"
    if ip is None or os.getuid():
        return False
    made = run([ip, "netns", "add", name], check=False, capture_output=True)
    return not made.returncode and not run([ip, "netns", "del", name], check=False).returncode


pytestmark = pytest.mark.skipif(not _has_networks(), reason="network namespaces need rights")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Three nodes with marship's front, and `lin` 1 with three replicas."""
    folder = tmp_path_factory.mktemp("three")
    store = folder / "model_store"
    store.mkdir()
    write_versions(store, tmp_path_factory.mktemp("lin"))
    token = folder / "ray_token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    made = Network(folder)
    try:
        made.make()
        for node in NODES:
            made.start(node)
            _until_started(folder / f"node{node}.log")
        made.marship("serve", "--engine", "ray", "--address", "10.77.0.1:6390", "--detach")
        made.marship("register", "lin-1", "--workers", "3")
        yield made
    finally:
        made.remove()


def _until_started(log: Path, timeout_s: float = 150.0) -> None:
    end = time.monotonic() + timeout_s
    while "Ray runtime started" not in (text := log.read_text()):
        assert time.monotonic() < end, text
        time.sleep(0.2)  # of another program's log


def test_nothing_is_lost_when_versions_change_and_a_node_dies(network: Network) -> None:
    """Of all requests to three nodes, whose clients try another node where one does not answer."""
    under_load = network.load(12000, 60)
    told = json.loads(network.marship("rollout", "lin-2", "--json"))
    assert told["new"]["version"] == "2"
    assert len({worker["id"].rpartition("@")[2] for worker in told["new"]["workers"]}) > 1
    result = _result(under_load)
    assert set(result["seen"]) == {OLD, NEW}, result

    under_load = network.load(900, 60, clients=CLIENTS)
    time.sleep(4)  # in the middle of the load
    network.kill(3)
    under_load.wait(timeout=180)
    result = _result(under_load)
    assert result["seen"] == {NEW: 900}, result
    in_hand = {what: n for what, n in result["failures"].items() if what.startswith("sent")}
    assert sum(in_hand.values()) <= CLIENTS, result  # what was lost without trying again


def _result(process: Popen[str]) -> dict[str, dict[str, int]]:
    text, _ = process.communicate(timeout=180)
    return dict(json.loads(text))
