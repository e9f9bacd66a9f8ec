"""HeClient: keys, uploads, checks, and what never leaves it."""

import json
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import private_runs
from marship.errors import (
    DataError,
    DecryptionError,
    InvalidInputError,
    KeyStoreFullError,
    MalformedError,
    MarshipError,
    UsageError,
)
from marship.private import HeClient, step
from marship.private.he_keys import MOST_FAILURES
from marship.serving.private import keys
from marship.serving.private.message import ANSWER, HAVE, PIECE, QUESTION, HeMessage
from private_runs import INPUTS, WEIGHTS, InProcess, packaged

ROWS = np.random.default_rng(0).normal(size=(4, INPUTS))
WANTED = ROWS @ WEIGHTS["d"] + WEIGHTS["c"]


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


def client_of(linear: step.Packaged, server: InProcess, **settings: object) -> HeClient:
    """A client without spot checks, unless they are asked for."""
    given = {"check_share": 0.0, **settings}
    return HeClient(linear.client_file, server, **given)  # type: ignore[arg-type]


def right(client: HeClient, wanted: np.ndarray) -> object:
    """An answer within the plan's limit of errors, which was measured with it."""
    assert client.file.error < 0.02
    return pytest.approx(wanted, abs=client.file.error)


def kinds(server: InProcess) -> list[bytes]:
    """The kinds of the messages that were sent."""
    return [HeMessage.from_bytes(body).kind for body in server.bodies]


def test_rows_are_answered(linear: step.Packaged, server: InProcess) -> None:
    """One or several; keys go up once, when they are asked for."""
    client = client_of(linear, server)
    found = client.predict(ROWS)
    assert found.dtype == np.float64
    assert found == right(client, WANTED)
    assert client.predict(ROWS[0].tolist()) == right(client, WANTED[0])
    assert kinds(server) == [QUESTION, HAVE, PIECE, *[QUESTION] * 5]


def test_only_missing_pieces_are_uploaded(
    linear: step.Packaged, server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that broke off goes on where it was."""
    monkeypatch.setattr(keys, "PIECE_BYTES", 50_000)
    server.handler._store.piece_bytes = 50_000
    client = client_of(linear, server)
    client.predict(ROWS[0])
    first = [HeMessage.from_bytes(body) for body in server.bodies]
    pieces = [one.number for one in first if one.kind == PIECE]
    assert pieces == list(range(len(pieces)))
    assert len(pieces) > 3
    store = server.handler._store
    for number in (1, 3):
        (store.root / store.plan / first[0].keys.hex() / str(number)).unlink()
    server.handler._cache.clear()
    server.bodies.clear()
    assert client.predict(ROWS[0]) == right(client, WANTED[0])
    sent = [HeMessage.from_bytes(body) for body in server.bodies]
    assert [one.number for one in sent if one.kind == PIECE] == [1, 3]


def test_nothing_sent_holds_a_value(linear: step.Packaged, server: InProcess) -> None:
    """Neither as text nor as a float of any width, nor the secret key."""
    client = client_of(linear, server)
    client.predict(ROWS)
    secret, _ = client._keys.held or pytest.fail("no keys")
    forms = [
        value.astype(kind).tobytes()
        for row in (*ROWS, *WANTED)
        for value in row
        for kind in ("<f4", "<f8", ">f8")
        if kind != "<f4" or value
    ]
    sent = b"".join(server.bodies)
    eights = [form for form in forms if len(form) == 8]
    assert not [form for form in eights if form in sent]
    assert b"".join(row.astype("<f4").tobytes() for row in ROWS[:1]) not in sent
    assert secret.dump()[100:200] not in sent


def test_keys_in_a_file_are_used_again(
    linear: step.Packaged, server: InProcess, tmp_path: Path
) -> None:
    """By the next process: nothing is uploaded again. The file is its owner's alone."""
    path = tmp_path / "mine" / "tiny.keys"
    before = os.umask(0)
    try:
        client_of(linear, server, keys=path).predict(ROWS[0])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir() if one.name[0] != "."] == ["tiny.keys"]
    server.bodies.clear()
    client = client_of(linear, server, keys=path)
    assert client.predict(ROWS) == right(client, WANTED)
    assert kinds(server) == [QUESTION] * 4


def damaged(path: Path) -> None:
    """Not a key file any more."""
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.chmod(0o640), "must be a file for its owner only, got mode 640"),
        (damaged, "must be a key file of marship's"),
        (lambda path: path.write_bytes(b"secret"), "must be a key file of marship's"),
    ],
)
def test_a_key_file_must_be_whole_and_private(
    linear: step.Packaged,
    server: InProcess,
    tmp_path: Path,
    change: Callable[[Path], None],
    said: str,
) -> None:
    """Else it is refused, and left as it is."""
    path = tmp_path / "tiny.keys"
    client_of(linear, server, keys=path).predict(ROWS[0])
    change(path)
    there = path.read_bytes()
    with pytest.raises(UsageError, match=said):
        client_of(linear, server, keys=path).predict(ROWS[0])
    assert path.read_bytes() == there


def test_a_key_file_is_of_one_model(
    linear: step.Packaged, server: InProcess, tmp_path: Path
) -> None:
    """Another one's is not overwritten."""
    path = tmp_path / "tiny.keys"
    client_of(linear, server, keys=path).predict(ROWS[0])
    there = path.read_bytes()
    run = private_runs.run_folder(tmp_path / "other", private_runs.SQUARE)
    step.compile_run(run)
    other = step.package(run, step.PackageSettings(model_store=tmp_path / "store"))
    with pytest.raises(UsageError, match="must hold keys for plan"):
        client_of(other, server, keys=path).predict(ROWS[0])
    assert path.read_bytes() == there
    with pytest.raises(InvalidInputError, match="must be that of the model that is asked"):
        client_of(other, server).predict(ROWS[0])


def flipped(place: int) -> Callable[[bytes], bytes]:
    """Turns over a bit of an answer, and leaves its hash."""
    return lambda body: body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


def rehashed(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Changes an answer's ciphertext, with the hash that fits."""

    def changed(body: bytes) -> bytes:
        message = HeMessage.from_bytes(body)
        payload = change(bytes(message.payload))
        return replace(message, payload=payload).to_bytes()

    return changed


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "damaged": flipped(2000),
    "cut": lambda body: body[:-1],
    "empty": lambda _: b"",
    "junk": rehashed(lambda data: b"x" * len(data)),
    "a flipped bit with a right hash": rehashed(flipped(20_000)),
    "longer": rehashed(lambda data: data + b"\0"),
    "a question": lambda body: body[:4] + QUESTION + body[5:],
    "for others": lambda body: body[:37] + bytes(32) + body[69:],
    "to another question": lambda body: body[:117] + bytes(32) + body[149:],
}


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_is_none_is_an_error_here(
    linear: step.Packaged, server: InProcess, name: str
) -> None:
    """Of one type, whatever is wrong; the server is asked once and told nothing."""
    client = client_of(linear, server)
    client.predict(ROWS[0])
    server.bodies.clear()
    server.change = WRONG[name]
    with pytest.raises(DecryptionError):
        client.predict(ROWS[0])
    assert kinds(server) == [QUESTION]


def test_an_answer_to_another_question_is_found_by_known_cases(
    linear: step.Packaged, server: InProcess
) -> None:
    """A server that answers something else is found, although all decrypts well."""
    client = client_of(linear, server, check_share=0.5)
    assert client.predict(ROWS) == right(client, WANTED)
    answers: list[bytes] = []

    def replay(body: bytes) -> bytes:
        answers.append(body)
        asked = HeMessage.from_bytes(body).asked  # a server can state what is wanted
        return replace(HeMessage.from_bytes(answers[0]), asked=asked).to_bytes()

    server.change = replay
    with pytest.raises(DecryptionError, match="a known case must have its answer"):
        client.predict(np.tile(ROWS, (40, 1)))


def test_known_cases_look_like_any_question(linear: step.Packaged, server: InProcess) -> None:
    """Of lengths as random as those of others, about as many as wanted."""
    client = client_of(linear, server, check_share=0.3)
    client.predict(ROWS[0])
    server.bodies.clear()
    for _ in range(100):
        client.predict(ROWS[0])
    checks = len(server.bodies) - 100
    assert 15 < checks < 80  # 43 are expected, 5 is the standard deviation
    sizes = [len(body) for body in server.bodies]
    assert max(sizes) - min(sizes) < 0.05 * max(sizes)


def test_new_keys_follow_a_few_failures(
    linear: step.Packaged, server: InProcess, tmp_path: Path
) -> None:
    """In the file, too: an observer of failures learns of keys that are not used any more."""
    path = tmp_path / "tiny.keys"
    client = client_of(linear, server, keys=path)
    client.predict(ROWS[0])
    there = path.read_bytes()
    server.change = WRONG["junk"]
    for _ in range(MOST_FAILURES):
        with pytest.raises(DecryptionError):
            client.predict(ROWS[0])
    server.change = bytes
    assert client.predict(ROWS[0]) == right(client, WANTED[0])
    assert path.read_bytes() != there


def test_values_beyond_the_models_are_an_error(linear: step.Packaged, server: InProcess) -> None:
    """And no wrong answer: the modulus is exceeded."""
    with pytest.raises(DecryptionError, match="values exceed what the model was packaged for"):
        client_of(linear, server).predict(1e4 * ROWS)


def test_a_full_store_is_the_servers_error(
    linear: step.Packaged, server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed, for the client to try again later."""
    monkeypatch.setattr(type(server.handler._store), "put", full)
    with pytest.raises(KeyStoreFullError):
        client_of(linear, server).predict(ROWS[0])


def full(*_: object) -> None:
    """There is no room."""
    raise KeyStoreFullError("keys of another client must fit on the server's disk, got none left.")


@pytest.mark.parametrize(
    "x",
    [[], 1.0, [[1.0] * (INPUTS + 1)], [float("nan")] * INPUTS, "text", {"x": 1}, [[1.0], [1.0, 2]]],
)
def test_other_inputs_are_refused_before_anything_is_sent(
    linear: step.Packaged, server: InProcess, x: object
) -> None:
    """Shapes, types, and values that are not finite."""
    with pytest.raises(UsageError):
        client_of(linear, server).predict(x)
    assert not server.bodies


def changed(path: Path, folder: Path, change: Callable[[dict], None]) -> Path:
    """A client file with a change."""
    value = json.loads(path.read_text())
    change(value)
    target = folder / path.name
    target.write_text(json.dumps(value))
    known = path.with_name(path.name.replace(".client.json", ".known.npz"))
    (folder / known.name).write_bytes(known.read_bytes())
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format=2),
        lambda v: v.update(kind="fhe"),
        lambda v: v.update(digest="00" * 32),
        lambda v: v.update(known=[["AAAA", "AAAA"]]),
        lambda v: v.update(known="00" * 32),
        lambda v: v.update(error=-1.0),
        lambda v: v["plan"].pop("public"),
        lambda v: v["plan"].update(noise="much"),
        lambda v: v["plan"]["public"].update(inputs=10**9),
        lambda v: v["plan"]["public"].update(outputs=OSError.__name__),
        lambda v: v["plan"]["public"]["ring"].update(degree=2048),
        lambda v: v["plan"]["public"]["ring"].update(bits=[60, 60, 60]),
        lambda v: v["plan"]["public"]["ring"].update(scale_bits=0),
        lambda v: v["plan"]["public"]["packing"].update(width=0),
        lambda v: v["plan"]["public"]["packing"].update(index=[99]),
        lambda v: v["plan"]["public"].update(steps=[-1]),
        lambda v: v["plan"]["public"].update(steps=list(range(1, 2000))),
        lambda v: v["plan"]["public"].update(zeros=[5, 5]),
        lambda v: v["plan"]["public"].update(constants=[[7, 1.0]]),
        lambda v: v["plan"]["public"].update(extra=1),
        lambda v: v["input"].update(shape=[0]),
        lambda v: v.update(known=[]),
        lambda v: v.update(known=None),
    ],
)
def test_a_changed_client_file_is_refused(
    linear: step.Packaged, server: InProcess, tmp_path: Path, change: Callable[[dict], None]
) -> None:
    """Whatever it holds: weak rings, wrong sizes, other types."""
    file = changed(linear.client_file, tmp_path, change)
    with pytest.raises(DataError):
        HeClient(file, server)  # type: ignore[arg-type]


def test_a_client_file_of_three_parties_is_for_another_client(
    linear: step.Packaged, server: InProcess, tmp_path: Path
) -> None:
    """There is no class that takes whatever comes."""
    file = changed(linear.client_file, tmp_path, lambda v: v.update(kind="mpc"))
    with pytest.raises(UsageError, match=r"got mpc\. Use MpcClient"):
        HeClient(file, server)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be a client file, got: No such file"):
        HeClient(tmp_path / "nix.client.json", server)  # type: ignore[arg-type]


def test_threads_share_a_client(linear: step.Packaged, server: InProcess) -> None:
    """Their questions do not mix."""
    client, found = client_of(linear, server), {}

    def ask(index: int) -> None:
        found[index] = client.predict(ROWS[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array([found[index] for index in range(4)]) == right(client, WANTED)


def test_the_first_part_of_a_model_runs_at_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inputs by name, whatever they are; only what it gives is sent, encrypted."""
    nodes = [*private_runs.SQUARE[:1], private_runs.node("Relu", "h", out="s"),
             *private_runs.SQUARE[2:]]  # fmt: skip
    run = private_runs.run_folder(tmp_path / "run", nodes)
    step.compile_run(run, "s")
    done = step.package(run, step.PackageSettings(model_store=tmp_path / "store"))
    assert done.encoder is not None
    monkeypatch.setenv("MARSHIP_CLIENT_KEYS", str(tmp_path / "client-keys"))
    server = InProcess(private_runs.loaded(done.archive, tmp_path / "extracted"))
    client = client_of(done, server)
    hidden = np.maximum(ROWS @ WEIGHTS["a"], 0)
    wanted = hidden @ WEIGHTS["b"] + WEIGHTS["c"]
    assert client.predict({"x": ROWS}) == right(client, wanted)
    for other in (ROWS, {"y": ROWS}, {"x": "text"}):
        with pytest.raises(UsageError):
            client.predict(other)
    done.encoder.write_bytes(done.encoder.read_bytes() + b"\0")
    with pytest.raises(DataError, match="must be the one that the client file states"):
        client_of(done, server)
    done.encoder.unlink()
    with pytest.raises(UsageError, match="must lie beside the client file"):
        client_of(done, server)


def test_errors_have_one_base() -> None:
    """Whoever catches MarshipError catches them all."""
    for kind in (DecryptionError, KeyStoreFullError, MalformedError):
        assert issubclass(kind, MarshipError)
    assert ANSWER != QUESTION
