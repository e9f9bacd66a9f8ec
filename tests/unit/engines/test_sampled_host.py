"""Samples of requests to a real host, under load and with workers that are killed."""

import json
import os
import re
import signal
import threading
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
import pytest

from hosted import Hosted, exchange
from marship.engines.figures import requests
from marship.engines.standalone.settings import HostSettings
from marship.engines.torchserve.settings import ServeSettings
from marship.errors import MarshipError, UsageError
from marship.operate.samples import open_all
from marship.packaging.step import PackageSettings, package
from marship.serving.hosts.direct import samples
from samplers import sealed_files, write_key
from versions import linear
from waiting import until

pytestmark = pytest.mark.slow

MARKER = 7_654_321
CLIENTS = 6


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model."""
    folder = tmp_path_factory.mktemp("lin")
    return package(linear(folder / "lin.onnx", 1), PackageSettings(model_store=folder))


def send(address: tuple[str, int], first: int, count: int) -> list[list[int]]:
    """Rows that no other client sends, each answered with 200, by several clients at once."""
    sent: list[list[int]] = []

    def run(number: int) -> None:
        line = HTTPConnection(*address, timeout=30)
        for turn in range(count // CLIENTS):
            row = [MARKER, number, first + turn]
            while True:  # a worker that was killed had the request: it is sent again
                try:
                    headers = {"Content-Type": "application/json"}
                    line.request("POST", "/predictions/lin", json.dumps([row]), headers)
                    response = line.getresponse()
                    response.read()
                except (OSError, HTTPException):
                    line.close()
                    continue
                if response.status == 200:
                    break
            sent.append(row)
        line.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return sent


def rows_in(folder: Path) -> list[list[int]]:
    """What plain files hold."""
    return [row for path in folder.rglob("*.json") for row in json.loads(path.read_bytes())]


def settled(root: Path) -> list[Path]:
    """The samples, when no more come."""
    before: list[Path] = []

    def look() -> bool:
        nonlocal before
        before, last = sealed_files(root), before
        return bool(before) and before == last

    until(look, 60, "all samples", poll_s=1.0)
    return before


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_share_of_what_is_sent_is_kept(mar: Path, tmp_path: Path, share: float) -> None:
    """By two workers: the share within five deviations, each a body that was sent, none readable.

    Workers that hold the key of samples can dump no core.
    """
    root, key = tmp_path / "samples", write_key(tmp_path / "key")
    words = ("--samples", root, "--sample-share", share, "--seal-key", key, "--workers", 2)
    with Hosted(tmp_path / "home", mar, "--no-tokens", *words) as host:
        host.ready()
        for worker in psutil.Process(host.process.pid).children():
            limits = Path(f"/proc/{worker.pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits)
        sent = send(host.address, 0, 1200)
        if share == 1:
            until(lambda: len(sealed_files(root)) == len(sent), 60, "all samples")
        count = len(settled(root))
        assert exchange(host.address, "POST", "/predictions/lin", [[1, 2]])[0] == 400
        host.terminate()
        assert host.wait() == 0
    assert len(sent) == 1200
    assert abs(count - share * 1200) <= 5 * (1200 * share * (1 - share)) ** 0.5
    done = open_all(root, tmp_path / "plain", key)
    assert not done.refused
    found = rows_in(tmp_path / "plain")
    assert len(found) == count
    assert sorted(found) == sorted(row for row in sent if row in found)
    words_of_requests = (str(MARKER).encode(), b"predictions", b"application/json")
    for place in (root, tmp_path / "home"):
        for path in place.rglob("*"):
            assert path.is_dir() or not any(word in path.read_bytes() for word in words_of_requests)
    assert b"json" in next((tmp_path / "plain").rglob("requests.jsonl")).read_bytes()


def test_a_killed_worker_breaks_no_sample(mar: Path, tmp_path: Path) -> None:
    """Killed three times under load: all that lies there opens."""
    root, key = tmp_path / "samples", write_key(tmp_path / "key")
    words = ("--samples", root, "--sample-share", 1, "--seal-key", key, "--workers", 2)
    with Hosted(tmp_path / "home", mar, "--no-tokens", *words) as host:
        host.ready()
        for turn in range(3):
            loading = threading.Thread(target=send, args=(host.address, 1000 * turn, 300))
            before = len(sealed_files(root))
            loading.start()
            until(lambda before=before: len(sealed_files(root)) > before, 60, "a sample")
            os.kill(psutil.Process(host.process.pid).children()[0].pid, signal.SIGKILL)
            loading.join(120)
            host.ready()
        settled(root)
    done = open_all(root, tmp_path / "plain", key)
    assert not done.refused
    found = rows_in(tmp_path / "plain")
    assert {row[0] for row in found} == {MARKER}
    assert len(found) == sum(one.files for one in done.versions) > 0


@pytest.mark.parametrize("kind", [HostSettings, ServeSettings])
def test_what_belongs_together_is_asked_for_together(kind: type, tmp_path: Path) -> None:
    """A folder, a share and a key; the folder can be made, and is its owner's alone."""
    key = write_key(tmp_path / "key")
    (tmp_path / "file").touch()
    root = tmp_path / "a" / "samples"
    wrong = [
        ({"samples": root, "seal_key": key}, "must come together"),
        ({"sample_share": 0.5, "seal_key": key}, "must come together"),
        ({"samples": root, "sample_share": 0.5}, "must come with --seal-key"),
        ({"samples": tmp_path / "file", "sample_share": 0.5, "seal_key": key}, "file"),
    ]
    for given, said in wrong:
        with pytest.raises(MarshipError, match=said):
            requests.variables(tmp_path, kind(**given))
    assert not root.exists()
    assert requests.variables(tmp_path, kind()) == {}
    told = requests.variables(tmp_path, kind(samples=root, sample_share=0.5, seal_key=key))
    asked = json.loads(told[samples.SAMPLES_VARIABLE])
    assert asked == {"folder": str(root), "share": 0.5}
    assert root.stat().st_mode & 0o777 == 0o700


def test_only_hosts_with_direct_workers_sample(tmp_path: Path) -> None:
    """TorchServe alone and Ray refuse the flag."""
    with pytest.raises(UsageError, match="--no-direct must come without --samples"):
        _ = ServeSettings(samples=tmp_path, no_direct=True).direct
    with pytest.raises(UsageError, match="--engine ray must come without --samples"):
        ServeSettings(samples=tmp_path, engine="ray").of_ray()


def test_a_host_without_a_key_says_so(mar: Path, tmp_path: Path) -> None:
    """In one line, and does not serve."""
    words = ("--samples", tmp_path / "samples", "--sample-share", 0.5)
    with Hosted(tmp_path / "home", mar, "--no-tokens", *words) as host:
        assert host.wait() == 2
        assert "--samples must come with --seal-key, got none" in host.text()
