"""Samples of requests in a worker: which are taken, where they lie, and what they survive."""

import errno
import gzip
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from directly import BODY, JSON, Place, service, until
from marship.errors import SealError, UsageError
from marship.serving.handler import OnnxHandler
from marship.serving.hosts.direct import journal, samples
from marship.serving.hosts.direct.samples import RequestSample
from marship.serving.hosts.direct.trial import TrialOrder
from marship.serving.message import Reply
from marship.serving.model import dumps, keysource
from marship.serving.model.sealed import Sealer
from marship.serving.private.handler import EncryptedHandler
from marship.serving.private.mpc.handler import PartyHandler
from marship.serving.streaming import StreamHandler
from samplers import KEY, exchanged, read, sealed_files, write_key, writer

WELL = Reply(b"")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers write when a test says so."""
    monkeypatch.setattr(samples, "_WRITE_S", 1e6)


@pytest.fixture
def place(loaded: Any, tmp_path: Path) -> Iterator[Place]:
    """A worker that samples each request."""
    made = Place()
    made.add(loaded, sampler=writer(tmp_path))
    made.follow(m=("1.0",))
    yield made
    made.close()


def test_what_is_answered_is_sampled_as_it_came(place: Place, tmp_path: Path) -> None:
    """With query and encoding, without other headers; refused ones and those without body are not.

    On the disk nothing of them can be read, by anybody but the owner.
    """
    packed, secret = gzip.compress(BODY), {"Authorization": "Bearer marker", "X-Mine": "marker"}
    assert place.ask("/predictions/m?k=3&marker=1", headers={**JSON, **secret}).status == 200
    headers = {**JSON, "Content-Encoding": "gzip"}
    assert place.ask("/v1/models/m:predict", packed, headers=headers).status == 200
    assert place.ask(body=b"[[1,").status == 400
    assert place.ask("/predictions/other").status == 404
    assert place.ask("/v2/models/m", b"", "GET").status == 200
    until(lambda: len(sealed_files(tmp_path)) == 2)
    found = sorted((read(path) for path in sealed_files(tmp_path)), key=lambda one: one.path)
    assert found == [
        RequestSample("/predictions/m", "k=3&marker=1", "application/json", "", "", BODY),
        RequestSample("/v1/models/m:predict", "", "application/json", "gzip", "", packed),
    ]
    assert not any(b"marker" in path.read_bytes() for path in sealed_files(tmp_path))
    assert {path.stat().st_mode & 0o777 for path in sealed_files(tmp_path)} == {0o600}
    assert {(tmp_path / "m" / name).stat().st_mode & 0o777 for name in ("", "1.0")} == {0o700}


@pytest.mark.parametrize("gives_new", [False, True], ids=["shadow", "canary"])
def test_a_request_that_both_versions_get_is_sampled_once(
    folder: Path, tmp_path: Path, gives_new: bool
) -> None:
    """As the version's whose response the client gets: a copy is no second request."""
    versions = ("1.0", "2.0")
    order = TrialOrder(
        owner="me", model="m", default="1.0", version="2.0", share=1.0, gives_new=gives_new
    )
    place = Place()
    try:
        for version in versions:
            sampler = writer(tmp_path, version=version)
            place.add(service(folder, "m", version), version=version, sampler=sampler)
        place.follow(m=versions)
        trials = place.acceptor.seats.trials
        place._loop.call_soon_threadsafe(trials.renew, order, time.monotonic(), versions)
        until(lambda: trials.of("m") is not None)
        for number in range(1, 4):
            assert place.ask().status == 200
            until(lambda number=number: trials.of("m").figures.compared == number)  # both answered
        for version in versions:  # what waits is written first, so one that is not there is none
            assert place.ask(f"/predictions/m/{version}").status == 200
        until(lambda: len(sealed_files(tmp_path)) >= 5)
    finally:
        place.close()
    counts = [len(sealed_files(tmp_path / "m" / version)) for version in versions]
    assert counts == ([1, 4] if gives_new else [4, 1])


@pytest.mark.parametrize(
    ("reply", "body", "is_abandoned"),
    [
        (Reply(b"", status=500), BODY, False),
        (Reply(b"", status=204), BODY, False),
        (Reply(b"", more=True), BODY, False),
        (WELL, b"", False),
        (WELL, BODY, True),
    ],
)
@pytest.mark.usefixtures("held")
def test_only_whole_answers_with_200_are_sampled(
    tmp_path: Path, reply: Reply, body: bytes, is_abandoned: bool
) -> None:
    """No error, no stream without its end, no request without a body, no client that is gone."""
    one, other = exchanged(body), exchanged(BODY)
    one.is_abandoned = is_abandoned
    made = writer(tmp_path)
    made.add([one, other], [reply, WELL])
    made.write()
    assert [read(path).body for path in sealed_files(tmp_path)] == [BODY]


@pytest.mark.usefixtures("held")
def test_a_sample_opens_in_its_place_alone(tmp_path: Path) -> None:
    """Not with the operator's own key, nor as another model's, nor below another name."""
    made = writer(tmp_path)
    made.add([exchanged(BODY)], [WELL])
    made.write()
    (path,) = sealed_files(tmp_path)
    assert read(path).body == BODY
    with pytest.raises(SealError, match="must be opened with the key"):
        samples.opened(path, bytes(range(32)), "m", "1.0")
    for model, version in (("n", "1.0"), ("m", "1.1")):
        with pytest.raises(SealError, match="for this model, version and place"):
            samples.opened(path, KEY, model, version)
    with pytest.raises(SealError, match="for this model, version and place"):
        read(path.rename(path.with_name("other.sealed")))


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), min_size=5, max_size=5), st.binary(max_size=50))
def test_every_request_is_a_sample(texts: list[str], body: bytes) -> None:
    """Whatever its bytes are, new lines among them."""
    path, *rest = (one.encode("utf-8", "replace").decode() for one in texts)
    sample = RequestSample(path, rest[0], rest[1], rest[2], rest[3], body)
    assert RequestSample.unpack(sample.pack()) == sample


@pytest.mark.parametrize("data", [b"", b"[]\n", b"{}\n", b'{"path":"/"}\nx', b"null\n", b"\xff"])
def test_what_is_no_sample_is_refused(data: bytes) -> None:
    """By one kind of error."""
    with pytest.raises(ValueError, match="no facts of a request"):
        RequestSample.unpack(data)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_every_name_is_a_folder_of_its_own(model: str, version: str) -> None:
    """Below the root, never hidden, and the name can be told from it."""
    model, version = (text.encode("utf-8", "replace").decode() for text in (model, version))
    names = samples.folder_of(Path("root"), model, version).parts
    assert names[0] == "root"
    assert len(names) == 3
    assert tuple(map(unquote, names[1:])) == (model, version)
    assert not any(name.startswith(".") for name in names)


@pytest.mark.usefixtures("held")
def test_two_workers_keep_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, to the last file; each says so once, and goes on when some are deleted."""
    monkeypatch.setattr(samples, "MOST_FILES", 50)
    both = [writer(tmp_path), writer(tmp_path)]
    turns = threading.Barrier(2)  # else one may be done before the other begins

    def fill(number: int) -> None:
        for turn in range(8):
            body = b"%d-%d" % (number, turn)
            both[number].add([exchanged(body)] * 5, [WELL] * 5)
            turns.wait(timeout=60)
            both[number].write()

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sealed_files(tmp_path)
    assert len(found) == 50
    assert {read(path).body[:2] for path in found} == {b"0-", b"1-"}
    said = [record for record in caplog.records if "fewer than 50" in record.message]
    assert len(said) == 2
    before = both[0]._waiting_bytes
    both[0].add([exchanged(b"full")], [WELL])
    assert both[0]._waiting_bytes == before
    for path in found[:20]:
        path.unlink()
    both[1]._drop()
    both[1]._is_full = False  # as its thread has it from time to time
    both[1].add([exchanged(b"later")], [WELL])
    both[1].write()
    assert len(sealed_files(tmp_path)) == 31
    assert len([r for r in caplog.records if "fewer than 50" in r.message]) == 2


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import samplers
from marship.serving.hosts.direct import samples
from marship.serving.message import Reply

samples._WRITE_S = 1e6
made = samplers.writer(Path(sys.argv[1]))
made.add([samplers.exchanged(b"whole")], [Reply(b"")])
made.write()

def cut(name, plain, file):
    file.write(b"marship\\1 and no more")
    file.flush()
    os.kill(os.getpid(), 9)

made._sealer.seal = cut
made.add([samplers.exchanged(b"half")], [Reply(b"")])
made.write()
"""


@pytest.mark.usefixtures("held")
def test_a_killed_worker_leaves_no_half_sample(tmp_path: Path) -> None:
    """Its draft is no sample, and the next worker that writes removes it."""
    tests = Path(__file__).parents[4]
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(tests)]
    assert subprocess.run(words, check=False).returncode == -9
    assert len(list(tmp_path.rglob("*.draft"))) == 1
    assert [read(path).body for path in sealed_files(tmp_path)] == [b"whole"]
    made = writer(tmp_path)
    made.add([exchanged(b"next")], [WELL])
    made.write()
    assert not list(tmp_path.rglob("*.draft"))
    assert {read(path).body for path in sealed_files(tmp_path)} == {b"whole", b"next"}


def test_a_full_disk_costs_samples_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, nothing is left of them, and the next are written when there is room."""
    tries = 0

    def seal(_: object, path: str, plain: Any, file: Any) -> None:
        nonlocal tries
        tries += 1
        file.write(path.encode() + plain.read())
        file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = writer(tmp_path)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(Sealer, "seal", seal)
        for turn in range(1, 3):
            made.add([exchanged(BODY)] * 3, [WELL] * 3)
            until(lambda turn=turn: tries == turn and not made._waiting_bytes)
        until(lambda: "No space left" in caplog.text)
        assert caplog.text.count("samples must be written to") == 1
    assert {path.name for path in (tmp_path / "m" / "1.0").iterdir()} == {".lock"}
    made.add([exchanged(BODY)], [WELL])
    until(lambda: len(sealed_files(tmp_path)) == 1)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("size", [0, 1000, 1 << 20])
def test_what_waits_is_bounded(tmp_path: Path, size: int) -> None:
    """Where nothing can be written, many small bodies too: 32 MiB and one request."""
    made = writer(tmp_path)
    batch = [exchanged(bytes(1 + size))] * 1000
    for _ in range(40):
        made.add(batch, [WELL] * 1000)
    assert (1 << 25) <= made._waiting_bytes < (1 << 25) + size + 2000
    assert len(made._waiting) <= (1 << 25) // 1024 + 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.usefixtures("held")
def test_the_share_is_kept(tmp_path: Path, share: float) -> None:
    """Within five standard deviations."""
    made, count = writer(tmp_path, share=share), 4000
    for _ in range(count):
        made.add([exchanged(b"x")], [WELL])
    assert abs(len(made._waiting) - share * count) <= 5 * (count * share * (1 - share)) ** 0.5


def test_only_private_models_are_not_sampled() -> None:
    """Their handlers say that clients encrypt."""
    kinds = (EncryptedHandler, PartyHandler, OnnxHandler, StreamHandler)
    assert [kind.is_private for kind in kinds] == [True, True, False, False]


def test_a_worker_is_told_by_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing as shipped; nothing of private models, which is said; no key is an error."""
    monkeypatch.setattr(dumps, "forbid", lambda: None)  # of this process
    monkeypatch.delenv(samples.SAMPLES_VARIABLE, raising=False)
    monkeypatch.delenv(keysource.SOURCE_VARIABLE, raising=False)
    assert samples.told("m", "1.0", is_private=False) is None
    assert journal.told("m", "1.0", None) is None
    asked = {"folder": str(tmp_path), "share": 1.0}
    monkeypatch.setenv(samples.SAMPLES_VARIABLE, json.dumps(asked))
    with pytest.raises(UsageError, match="a key's source"):
        samples.told("m", "1.0", is_private=False)
    monkeypatch.setenv(keysource.SOURCE_VARIABLE, write_key(tmp_path / "key"))
    with caplog.at_level(logging.INFO):
        assert samples.told("m", "1.0", is_private=True) is None
    assert "no requests to m 1.0 are sampled" in caplog.text
    made = samples.told("m", "1.0", is_private=False)
    assert made is not None
    assert journal.told("m", "1.0", made) is not None
    made.add([exchanged(BODY)], [WELL])
    until(lambda: [read(path).body for path in sealed_files(tmp_path)] == [BODY])
