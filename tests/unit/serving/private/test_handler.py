"""EncryptedHandler as a worker has it: what it answers, and what it refuses."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

import private_runs
from marship.errors import LoadError
from marship.private import client_file
from marship.serving.message import Reply, Request
from marship.serving.private import keys
from marship.serving.private.ckks import SecretKey
from marship.serving.private.handler import EncryptedHandler
from marship.serving.private.keys import KeySet
from marship.serving.private.message import HAVE, HE_TYPE, PIECE, QUESTION, HeMessage
from marship.serving.private.public import PublicPlan

ROW = np.linspace(-1, 1, private_runs.INPUTS)
WANTED = ROW @ private_runs.WEIGHTS["d"] + private_runs.WEIGHTS["c"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model's archive."""
    return private_runs.packaged(tmp_path_factory.mktemp("linear")).archive


@pytest.fixture
def handler(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncryptedHandler:
    """Its handler, with a home of its own; two sets of keys stay in memory."""
    monkeypatch.setenv("MARSHIP_CLIENT_KEYS", str(tmp_path / "client-keys"))
    loaded = private_runs.loaded(archive, archive.parent / "extracted", cached_keys_mb=3)
    assert loaded._most_cached == 2
    return loaded


class User:
    """A client, by hand."""

    def __init__(self, handler: EncryptedHandler) -> None:
        self.handler, self.public = handler, handler.session.public
        self.secret = SecretKey(self.public.ring)
        self.stream = keys.generate(self.public, self.secret)
        self.set = KeySet.of(self.public, self.stream)
        limit = handler.contract.tolerance.absolute("y")  # of the plan's errors, as measured
        assert limit < 0.02
        self.wanted = pytest.approx(WANTED, abs=limit)

    def message(self, kind: bytes, payload: bytes = b"", *place: int) -> HeMessage:
        """A message of this user."""
        return HeMessage(kind, bytes.fromhex(self.public.digest), self.set.id, payload, *place)

    def question(self, row: np.ndarray = ROW) -> HeMessage:
        """An encrypted row."""
        return self.message(QUESTION, self.secret.encrypt(self.public.packed(row)))

    def pieces(self) -> list[HeMessage]:
        """What is uploaded."""
        count = len(self.set.pieces)
        return [
            self.message(PIECE, self.set.manifest + piece, number, count)
            for number, piece in enumerate(self.set.pieces)
        ]

    def upload(self) -> None:
        """Upload all pieces."""
        for piece in self.pieces():
            (reply,) = send(self.handler, piece)
            assert reply.status == 200

    def read(self, reply: Reply) -> np.ndarray:
        """The decrypted answer."""
        assert reply.status == 200, reply.body
        slots = self.secret.decrypt(HeMessage.from_bytes(reply.body).payload, self.public.level)
        return self.public.unpacked(slots)


def send(
    handler: EncryptedHandler, *messages: HeMessage | bytes, kind: str = HE_TYPE
) -> list[Reply]:
    """The replies to a batch."""
    bodies = [one if isinstance(one, bytes) else one.to_bytes() for one in messages]
    replies, _ = handler.reply([Request(body=body, content_type=kind) for body in bodies])
    return replies


def code(reply: Reply) -> tuple[int, str]:
    """An error's status and code."""
    return reply.status, orjson.loads(reply.body)["code"]


def test_a_question_is_answered_when_its_keys_are_there(handler: EncryptedHandler) -> None:
    """Before that the refusal asks for them; which are there can be asked, too."""
    user = User(handler)
    (reply,) = send(handler, user.question())
    assert code(reply) == (409, "keys_missing")
    assert orjson.loads(send(handler, user.message(HAVE))[0].body) == {"have": []}
    user.upload()
    assert orjson.loads(send(handler, user.message(HAVE))[0].body) == {"have": [0]}
    (reply,) = send(handler, user.question())
    assert reply.content_type == HE_TYPE
    assert user.read(reply) == user.wanted


@pytest.mark.parametrize("kind", ["application/json", "application/x-npy", "", "text/plain"])
def test_plain_values_are_refused(handler: EncryptedHandler, kind: str) -> None:
    """In whatever form: nothing here computes on them."""
    (reply,) = send(handler, json.dumps([ROW.tolist()]).encode(), kind=kind)
    assert code(reply) == (415, "unsupported_media")
    assert b"HeClient" in reply.body


def test_a_bad_request_of_a_batch_fails_alone(handler: EncryptedHandler) -> None:
    """Whatever is wrong with it."""
    user = User(handler)
    user.upload()
    good, plan = user.question(), bytes.fromhex(user.public.digest)
    flipped = bytearray(good.to_bytes())
    flipped[5000] ^= 1
    bad = {
        b"": "malformed",
        b"junk" * 100: "malformed",
        bytes(flipped): "malformed",
        good.to_bytes()[:-1]: "malformed",
        good.to_bytes() + b"\0": "malformed",
        replace(good, payload=b"x" * 100).to_bytes(): "malformed",
        replace(good, payload=b"").to_bytes(): "malformed",
        replace(good, plan=bytes(32)).to_bytes(): "invalid_input",
        replace(good, keys=bytes(32)).to_bytes(): "keys_missing",
        replace(good, kind=b"?").to_bytes(): "malformed",
        HeMessage(PIECE, plan, user.set.id, b"", 0, 1).to_bytes(): "malformed",
    }
    for body, wanted in bad.items():
        first, second, third = send(handler, good, body, good)
        assert code(second)[1] == wanted
        for reply in (first, third):
            assert user.read(reply) == user.wanted


def test_a_set_that_is_no_set_is_removed(handler: EncryptedHandler) -> None:
    """It has its own id, so nobody else is concerned. It is as long as keys are."""
    user, other = User(handler), User(handler)
    user.upload()
    other.set = KeySet.of(other.public, b"no keys " * (len(user.stream) // 8))
    other.upload()
    for status in (400, 409):  # the second time it is not there any more
        (reply,) = send(handler, other.question())
        assert reply.status == status
    assert user.read(send(handler, user.question())[0]) == user.wanted


def test_keys_stay_in_memory_by_their_use(handler: EncryptedHandler) -> None:
    """Those used longest ago are read from the disk again, by all workers alike."""
    users = [User(handler) for _ in range(3)]
    for user in users:
        user.upload()
        assert user.read(send(handler, user.question())[0]) == user.wanted
    assert list(handler._cache) == [user.set.id for user in users[1:]]
    assert users[0].read(send(handler, users[0].question())[0]) == users[0].wanted
    assert list(handler._cache) == [users[2].set.id, users[0].set.id]


def test_another_worker_finds_the_keys(handler: EncryptedHandler, archive: Path) -> None:
    """One upload is for all workers of a server, and for those that start later."""
    user = User(handler)
    user.upload()
    later = private_runs.loaded(archive, archive.parent / "extracted")
    assert user.read(send(later, user.question())[0]) == user.wanted


def test_golden_cases_are_replayed_encrypted(archive: Path, tmp_path: Path) -> None:
    """A plan that computes something else does not load."""
    folder = tmp_path / "extracted"
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder)
    assert len(private_runs.loaded(archive, folder).golden_s) == 4
    contract = json.loads((folder / "contract.json").read_text())
    with np.load(folder / "golden.npz") as arrays:
        changed = {name: array + 0.5 * ("out" in name) for name, array in arrays.items()}
    np.savez(folder / "golden.npz", **changed)
    with pytest.raises(LoadError, match="golden case must agree"):
        private_runs.loaded(archive, folder)
    plan = folder / contract["files"][0]
    plan.write_bytes(plan.read_bytes() + b"\0")
    with pytest.raises(LoadError, match="must be as it was packaged"):
        private_runs.loaded(archive, folder)


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
def test_settings_are_whole_numbers(archive: Path, value: object) -> None:
    """A worker that has others does not start."""
    with pytest.raises(LoadError, match=r"handler.key_store_mb in model-config.yaml"):
        private_runs.loaded(archive, archive.parent / "extracted", key_store_mb=value)


def test_the_store_has_room_for_a_clients_keys(archive: Path) -> None:
    """With others beside them: a smaller one would refuse each client."""
    with pytest.raises(LoadError, match="must be at least 3, four times a client's keys, got 1"):
        private_runs.loaded(archive, archive.parent / "extracted", key_store_mb=1)


@pytest.mark.parametrize("cached_mb", [1, 500, 10**6])
def test_keys_in_memory_are_bounded_in_bytes(archive: Path, cached_mb: int) -> None:
    """However large the ring; one set is there in any case, as without it nothing is answered."""
    handler = private_runs.loaded(archive, archive.parent / "extracted", cached_keys_mb=cached_mb)
    set_bytes = (
        len(handler.session.public.key_bytes) * handler.session.public.ring.loaded_key_bytes()
    )
    most_bytes = max(cached_mb * 1_000_000, set_bytes)
    assert most_bytes - set_bytes < handler._most_cached * set_bytes <= most_bytes


def test_the_public_part_is_read_back(handler: EncryptedHandler) -> None:
    """As JSON has it."""
    public = handler.session.public
    assert PublicPlan.from_json(json.loads(json.dumps(public.to_json()))) == public
    assert client_file.KINDS[0] == "he"
