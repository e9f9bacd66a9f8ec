"""What HeClient does where values are too large, known cases fail, and what they are."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import private_runs
from marship.errors import DataError, DecryptionError, UsageError
from marship.private import HeClient, step
from marship.private.he_keys import MOST_FAILURES
from marship.serving.private.evaluate import Evaluator
from marship.serving.private.message import HAVE, HeMessage
from marship.serving.private.plan import HePlan
from private_runs import INPUTS, InProcess, packaged

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


def test_a_server_with_another_model_is_found(
    linear: step.Packaged, server: InProcess, tmp_path: Path
) -> None:
    """Also one that differs at a single weight: what it answers decrypts as well as ever."""
    weights = {**private_runs.WEIGHTS, "d": private_runs.WEIGHTS["d"].copy()}
    weights["d"][2, 1] += 0.5
    run = private_runs.run_folder(tmp_path / "run", private_runs.LINEAR, weights=weights)
    step.compile_run(run)
    other = HePlan.from_bytes((run / "he_plan.npz").read_bytes())
    session = server.handler.session
    assert other.ring == session.plan.ring
    one = HeClient(linear.client_file, server, check_share=0.5)  # type: ignore[arg-type]
    assert one.predict(np.tile(ROWS, (5, 1))).shape == (20, private_runs.OUTPUTS)
    session.evaluator = Evaluator(other)
    with pytest.raises(DecryptionError, match="a known case must have its answer within"):
        one.predict(np.tile(ROWS, (25, 1)))


def test_known_cases_lie_beside_the_client_file(linear: step.Packaged, tmp_path: Path) -> None:
    """Whole, or the client says so; who asks for no checks needs none."""
    path = tmp_path / linear.client_file.name
    path.write_bytes(linear.client_file.read_bytes())
    with pytest.raises(
        UsageError, match=r"must lie beside the client file.* or pass check_share=0"
    ):
        HeClient(path, "http://127.0.0.1:9")
    assert HeClient(path, "http://127.0.0.1:9", check_share=0).check_share == 0
    known = tmp_path / linear.known.name
    known.write_bytes(linear.known.read_bytes()[:-1])
    with pytest.raises(DataError, match="must be the one that the client file states"):
        HeClient(path, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"inputs": np.zeros((0, 6)), "outputs": np.zeros((0, 3))},
        {"inputs": np.zeros((2, 5)), "outputs": np.zeros((2, 3))},
        {"inputs": np.zeros((2, 6)), "outputs": np.zeros((3, 3))},
        {"inputs": np.array(["x"]), "outputs": np.zeros((1, 3))},
        {"inputs": np.array([{}]), "outputs": np.zeros((1, 3))},
    ],
)
def test_known_cases_are_of_the_model(
    linear: step.Packaged, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    """Whatever a client file states that nobody has signed."""
    path, known = tmp_path / linear.client_file.name, tmp_path / linear.known.name
    np.savez(known, **arrays)
    value = json.loads(linear.client_file.read_text())
    value["known"] = hashlib.sha256(known.read_bytes()).hexdigest()
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match="known cases must be"):
        HeClient(path, "http://127.0.0.1:9")


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
