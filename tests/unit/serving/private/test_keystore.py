"""Clients' keys on disk: whole, their owners' own, private, and within a quota."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from marship.errors import KeysMissingError, KeyStoreFullError, MalformedError
from marship.serving.private.keys import PIECE_BYTES, set_id
from marship.serving.private.keystore import KeyStore

PLAN = hashlib.sha256(b"plan").hexdigest()
Set = tuple[bytes, bytes, list[bytes]]


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    """A store of up to 100 kB."""
    return KeyStore(tmp_path / "keys", PLAN, 4, 100_000, 3600)


def made(*pieces: bytes) -> Set:
    """A set's id, manifest and pieces."""
    manifest = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    return set_id(PLAN, manifest), manifest, list(pieces)


ONE = made(b"first", b"second", b"third")


def put(store: KeyStore, keys: Set, number: int) -> None:
    """Upload a piece."""
    key_id, manifest, pieces = keys
    store.put(key_id, number, len(pieces), manifest + pieces[number])


def test_a_set_is_read_when_it_is_whole(store: KeyStore) -> None:
    """In whatever order its pieces came; until then the error names those that are missing."""
    with pytest.raises(KeysMissingError, match="got none"):
        store.read(ONE[0])
    for number in (2, 0):
        put(store, ONE, number)
    assert store.have(ONE[0]) == [0, 2]
    with pytest.raises(KeysMissingError, match="got none of pieces 1"):
        store.read(ONE[0])
    put(store, ONE, 1)
    assert store.read(ONE[0]) == b"firstsecondthird"


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
    _, other_manifest, _ = made(b"evil", b"second", b"third")
    for payload in (manifest + b"evil", other_manifest + b"evil", b"evil", b"", manifest):
        with pytest.raises(MalformedError, match="must be the one that their id states"):
            store.put(key_id, 0, 3, payload)
    for number in (1, 2):
        put(store, ONE, number)
    assert store.read(key_id) == b"firstsecondthird"


@pytest.mark.parametrize(("number", "count"), [(3, 3), (0, 0), (0, 5), (4_000_000_000, 2)])
def test_numbers_of_pieces_are_within_those_of_the_plan(
    store: KeyStore, number: int, count: int
) -> None:
    """Nobody fills the disk with pieces that no plan has."""
    with pytest.raises(MalformedError, match="at most 4 pieces"):
        store.put(ONE[0], number, count, b"x")
    assert not store.root.exists()


def test_a_piece_has_a_size(store: KeyStore) -> None:
    """The one that fits in a request."""
    large = made(bytes(PIECE_BYTES + 1))
    with pytest.raises(MalformedError, match="must be the one that their id states"):
        put(store, large, 0)


def test_a_full_store_refuses_new_keys_and_keeps_those_of_others(store: KeyStore) -> None:
    """However many are sent: each file counts as the block that it takes."""
    put(store, made(b"somebody's"), 0)

    def flood() -> None:
        for number in range(1_000_000):
            put(store, made(b"%d" % number), 0)

    with pytest.raises(KeyStoreFullError, match="must fit in 100,000 bytes"):
        flood()
    assert 2 < len(list(store.root.glob("*/*"))) < 100_000 / 4096
    assert store.read(made(b"somebody's")[0]) == b"somebody's"


def age(store: KeyStore, keys: Set, seconds: float) -> None:
    """Let a set's last use be some time ago."""
    then = time.time() - seconds
    os.utime(store.root / PLAN / keys[0].hex(), (then, then))


def test_unused_sets_are_removed(store: KeyStore) -> None:
    """After their lifetime; an incomplete one after ten minutes."""
    whole, unused, begun = made(b"whole"), made(b"unused"), made(b"a", b"b")
    for keys in (whole, unused, begun):
        put(store, keys, 0)
    age(store, whole, 3000)
    age(store, unused, 4000)
    age(store, begun, 700)
    store.sweep()
    assert store.have(whole[0])
    assert not store.have(unused[0])
    assert not store.have(begun[0])


def test_a_set_that_is_used_stays(store: KeyStore) -> None:
    """Each use is noted, once a minute."""
    keys = made(b"whole")
    put(store, keys, 0)
    age(store, keys, 3000)
    store.use(keys[0])
    age_s = time.time() - (store.root / PLAN / keys[0].hex()).stat().st_mtime
    assert age_s < 60
    store.use(bytes(32))  # one that is not there
