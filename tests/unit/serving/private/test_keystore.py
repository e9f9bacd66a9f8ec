"""Clients' keys on disk: whole, their owners' own, private, and within a quota."""

import errno
import hashlib
import os
import time
from itertools import count
from pathlib import Path

import pytest

from marship.errors import KeysMissingError, KeyStoreFullError, MalformedError
from marship.serving.private import keystore
from marship.serving.private.keys import set_id
from marship.serving.private.keystore import KeyStore

PLAN = hashlib.sha256(b"plan").hexdigest()
ROOM = 50
"""Sets of up to a block that the store holds; each takes three: folder, manifest, piece."""
NEW = ROOM // 4
Set = tuple[bytes, bytes, list[bytes]]


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    """A store for sets of 8 to 29 bytes in pieces of 10."""
    return KeyStore(tmp_path / "keys", PLAN, range(8, 30), ROOM * 3 * 4096, 3600, piece_bytes=10)


def made(*pieces: bytes) -> Set:
    """A set's id, manifest and pieces."""
    manifest = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    return set_id(PLAN, manifest), manifest, list(pieces)


ONE = made(b"the first ", b"the second", b"third")


def put(store: KeyStore, keys: Set, number: int = 0) -> None:
    """Upload a piece."""
    key_id, manifest, pieces = keys
    store.put(key_id, number, len(pieces), manifest + pieces[number])


def test_a_set_is_read_when_it_is_whole(store: KeyStore) -> None:
    """In whatever order its pieces came; until then the error names those that are missing."""
    with pytest.raises(KeysMissingError, match="got none"):
        store.read(ONE[0])
    put(store, ONE, 1)
    assert store.have(ONE[0]) == [1]
    with pytest.raises(KeysMissingError, match="got none of pieces 0, 2"):
        store.read(ONE[0])
    for number in (0, 2):
        put(store, ONE, number)
    assert store.read(ONE[0]) == b"the first the secondthird"


def test_the_last_piece_comes_last(store: KeyStore) -> None:
    """It alone may be short: a set on disk has cost its sender at least a whole piece."""
    put(store, ONE, 0)
    with pytest.raises(KeysMissingError, match="got none of pieces 1"):
        put(store, ONE, 2)
    assert store.have(ONE[0]) == [0]


def test_files_are_for_the_server_alone(store: KeyStore) -> None:
    """Folders 0700, files 0600, whatever the umask; nothing half-written stays."""
    before = os.umask(0)
    try:
        put(store, ONE, 0)
    finally:
        os.umask(before)
    found = [store.root, *store.root.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in found if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in found if path.is_file()} == {0o600}
    assert not [path for path in found if path.name.startswith(".")]


def test_nobody_can_replace_anothers_keys(store: KeyStore) -> None:
    """A piece must be what the id states: only its owner's bytes fit."""
    put(store, ONE, 0)
    key_id, manifest, _ = ONE
    evil = b"evil" + bytes(6)
    _, other_manifest, _ = made(evil, *ONE[2][1:])
    for payload in (manifest + evil, other_manifest + evil, evil, b"", manifest):
        with pytest.raises(MalformedError, match="must be the one that their id states"):
            store.put(key_id, 0, 3, payload)
    for number in (1, 2):
        put(store, ONE, number)
    assert store.read(key_id) == b"the first the secondthird"


@pytest.mark.parametrize(("number", "count"), [(3, 3), (0, 0), (0, 4), (4_000_000_000, 2)])
def test_numbers_of_pieces_are_within_those_of_the_plan(
    store: KeyStore, number: int, count: int
) -> None:
    """Nobody fills the disk with pieces that no plan has."""
    with pytest.raises(MalformedError, match="in 1 to 3 pieces"):
        store.put(ONE[0], number, count, b"x")
    assert not store.root.exists()


@pytest.mark.parametrize(
    "pieces",
    [[b"seven b"], [bytes(11)], [b""], [bytes(9), bytes(5)], [bytes(11), bytes(5)],
     [bytes(10), b""], [bytes(10), bytes(11)], [bytes(10), bytes(10), bytes(10)]],
)  # fmt: skip
def test_pieces_have_the_lengths_of_the_plans_keys(store: KeyStore, pieces: list[bytes]) -> None:
    """A few bytes, or too many, are never a set that is kept, however right their digests."""
    keys = made(*pieces)
    with pytest.raises(MalformedError, match="must have 10 bytes, or as the last one"):  # noqa: PT012
        for number in range(len(pieces)):  # the first of a wrong length is refused
            put(store, keys, number)
    with pytest.raises(KeysMissingError):
        store.read(keys[0])


_numbers = count()


def another() -> Set:
    """A set like no other."""
    return made(b"%09d" % next(_numbers))


def fill(store: KeyStore, sets: int, *, asks: bool = False) -> None:
    """Sets of strangers, which also ask a question each."""
    for _ in range(sets):
        keys = another()
        put(store, keys)
        if asks:
            store.use(keys[0])


def size(store: KeyStore) -> int:
    """How many sets are there."""
    return len(list(store.root.glob("*/*")))


def test_junk_displaces_no_client_that_was_answered(store: KeyStore) -> None:
    """However much comes: what has not answered has a quarter of the room."""
    clients = [another() for _ in range(ROOM - NEW - 2)]
    for keys in clients:
        put(store, keys)
        store.use(keys[0])
    fill(store, 300)
    assert NEW / 2 < size(store) - len(clients) <= NEW + 1
    assert all(store.read(keys[0]) for keys in clients)


def test_nobody_is_locked_out_of_a_full_store(store: KeyStore) -> None:
    """Keys that were used longest ago give way, whether strangers' sets have answered or not."""
    fill(store, 100, asks=True)
    fill(store, 100)
    late = another()
    put(store, late)
    store.use(late[0])
    fill(store, 100)
    fill(store, ROOM // 2, asks=True)
    assert store.read(late[0])
    assert size(store) <= ROOM + 1


def test_those_used_longest_ago_go_first(store: KeyStore) -> None:
    """A client who keeps asking stays, whoever else comes."""
    old, busy = another(), another()
    for keys in (old, busy):
        put(store, keys)
        store.use(keys[0])
        age(store, keys, 300)
    store.use(busy[0])
    fill(store, ROOM - NEW - 2, asks=True)
    store.sweep()
    assert store.read(busy[0])
    assert not store.have(old[0])


def test_the_store_is_walked_now_and_then(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each piece: an upload costs the same however many sets are there."""
    store.most_bytes = 1 << 30
    walked, sweep = [], KeyStore._sweep
    monkeypatch.setattr(KeyStore, "_sweep", lambda self: (walked.append(1), sweep(self)))
    fill(store, 200)
    assert len(walked) <= 2  # the first, and perhaps one for the minute


def test_a_full_disk_is_said_and_leaves_nothing(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the set that did not fit; those of others stay."""
    other = another()
    put(store, other)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keystore, "_write", full)
    with pytest.raises(KeyStoreFullError, match="got: No space left on device"):
        put(store, ONE)
    assert size(store) == 1
    assert store.read(other[0])


def age(store: KeyStore, keys: Set, seconds: float) -> None:
    """Let a set's last use be some time ago."""
    then = time.time() - seconds
    os.utime(store.root / PLAN / keys[0].hex(), (then, then))


def test_unused_sets_are_removed(store: KeyStore) -> None:
    """After their lifetime; one that has answered nothing after ten minutes, whole or not."""
    used, unused, junk = another(), another(), another()
    for keys in (used, unused, junk, ONE):
        put(store, keys)
    for keys in (used, unused):
        store.use(keys[0])
    for keys, seconds in ((used, 3000), (unused, 4000), (junk, 700), (ONE, 700)):
        age(store, keys, seconds)
    store.sweep()
    assert [bool(store.have(keys[0])) for keys in (used, unused, junk, ONE)] == [
        True, False, False, False,
    ]  # fmt: skip


def test_a_set_that_is_used_stays(store: KeyStore) -> None:
    """Each use is noted, once a minute."""
    keys = another()
    put(store, keys)
    store.use(keys[0])
    age(store, keys, 3000)
    store.use(keys[0])
    age_s = time.time() - (store.root / PLAN / keys[0].hex()).stat().st_mtime
    assert age_s < 60
    store.use(bytes(32))  # one that is not there
