"""What HeClient does where values are too large, known cases fail, and what they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import private_runs
from marship.contract import read_golden
from marship.errors import DecryptionError, UsageError
from marship.private import HeClient, step
from marship.private.he_keys import MOST_FAILURES
from marship.serving.private.message import HAVE, HeMessage
from private_runs import INPUTS, WEIGHTS, InProcess, packaged

ROWS = np.random.default_rng(0).normal(size=(4, INPUTS))


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> step.Packaged:
    """A linear model, packaged."""
    return packaged(tmp_path_factory.mktemp("linear"))


@pytest.fixture
def server(linear: step.Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Its handler, in place of a server."""
    monkeypatch.setenv("MARSHIP_CLIENT_KEYS", str(tmp_path / "client-keys"))
    archive = linear.archive
    return InProcess(private_runs.loaded(archive, archive.parent / "extracted"))


@pytest.mark.parametrize("factor", [1e12, 1e300])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 4)])
def test_values_beyond_the_ring_are_refused_before_anything_is_sent(
    linear: step.Packaged, server: InProcess, factor: float, rows: slice
) -> None:
    """In one line, with the largest; whatever stands in front of them."""
    x = ROWS[rows].copy()
    x[-1] *= factor
    client = HeClient(linear.client_file, server, check_share=0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must fit the model's ring, got") as caught:
        client.predict(x)
    assert "\n" not in str(caught.value)
    assert not server.bodies


def test_known_cases_that_fail_count_towards_new_keys(
    linear: step.Packaged, server: InProcess
) -> None:
    """A server that answers wrongly watches a few reactions under one key, and no more."""
    client = HeClient(linear.client_file, server, check_share=0.999)  # type: ignore[arg-type]
    client.predict(ROWS[0])
    before = client._keys.held
    first: list[bytes] = []

    def replay(body: bytes) -> bytes:
        first.append(body)
        asked = HeMessage.from_bytes(body).asked  # a server can state what is wanted
        return replace(HeMessage.from_bytes(first[0]), asked=asked).to_bytes()

    client._ask(10 * ROWS[0])
    server.change = replay
    client._ask(3 * ROWS[0])
    for count in range(MOST_FAILURES):
        assert client._keys.held is before, count
        with pytest.raises(DecryptionError, match="a known case must have its answer"):
            client._check()
    assert client._keys.held is None


def test_known_cases_are_nobodys_data(tmp_path: Path) -> None:
    """Neither real golden rows, which the archive holds, nor any row that the run has seen."""
    run = private_runs.run_folder(tmp_path / "run", private_runs.SQUARE, "real")
    step.compile_run(run)
    settings = step.PackageSettings(model_store=tmp_path / "store", golden="real")
    known = HeClient(step.package(run, settings).client_file, "http://127.0.0.1:9").file.known
    rows = np.array([case.input for case in known])
    (golden,) = read_golden(run / "he_golden.npz")
    (real,) = golden.inputs.values()
    assert len(rows) == 4
    assert np.abs(rows[:, None] - real[None]).max(axis=2).min() > 0.1
    assert 0.25 < np.abs(rows).max() / np.abs(real).max() <= 1
    wanted = (rows @ WEIGHTS["a"].astype(float)) ** 2 @ WEIGHTS["b"] + WEIGHTS["c"]
    assert np.array([case.output for case in known]) == pytest.approx(wanted, abs=1e-6)


def junk(_: bytes) -> bytes:
    """An answer that is none."""
    return b""


def test_failures_are_counted_with_the_key_file(
    linear: step.Packaged, server: InProcess, tmp_path: Path
) -> None:
    """By one process after the other, and by those that run at once: they count for the keys."""
    path = tmp_path / "tiny.keys"
    others = [client(linear, server, path) for _ in range(2)]
    for one in others:
        one.predict(ROWS[0])
    there = path.read_bytes()
    server.change = junk
    for count in range(1, MOST_FAILURES):
        with pytest.raises(DecryptionError):
            client(linear, server, path).predict(ROWS[0])
        assert path.with_name("tiny.keys.failures").stat().st_size == count
        assert path.read_bytes() == there
    with pytest.raises(DecryptionError):
        others[0].predict(ROWS[0])
    assert not list(tmp_path.glob("tiny.keys*"))
    server.change = bytes
    for one in others:  # also the one that saw no failure uses the old keys no more
        one.predict(ROWS[0])
    (first, _), (second, _) = (one._keys.held or pytest.fail("no keys") for one in others)
    assert first.dump() == second.dump()
    assert path.read_bytes() != there


def test_a_count_of_removed_keys_is_not_that_of_new_ones(
    linear: step.Packaged, server: InProcess, tmp_path: Path
) -> None:
    """Whoever removes a key file may leave the count."""
    path = tmp_path / "tiny.keys"
    path.with_name("tiny.keys.failures").write_bytes(b"..")
    client(linear, server, path).predict(ROWS[0])
    assert [one.name for one in tmp_path.glob("tiny.keys*")] == ["tiny.keys"]


def client(linear: step.Packaged, server: InProcess, path: Path) -> HeClient:
    """A new process, as it were."""
    return HeClient(linear.client_file, server, keys=path, check_share=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("have", [5, None, "0", [[1]], [{}], [-1, 2**70, None], {"0": 1}])
def test_a_server_may_say_anything_of_what_it_has(
    linear: step.Packaged, server: InProcess, monkeypatch: pytest.MonkeyPatch, have: object
) -> None:
    """What is no list of numbers means that nothing is there."""
    predict = server.predict

    def lying(name: str, inputs: bytes, **given: str) -> object:
        is_asked = HeMessage.from_bytes(inputs).kind == HAVE
        return {"have": have} if is_asked else predict(name, inputs, **given)

    monkeypatch.setattr(server, "predict", lying)
    one = HeClient(linear.client_file, server, check_share=0)  # type: ignore[arg-type]
    assert one.predict(ROWS[0]).shape == (private_runs.OUTPUTS,)
