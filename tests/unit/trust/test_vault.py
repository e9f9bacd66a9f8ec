"""The vault holds verified copies only, and what is done to the store later does not reach them."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from marship.errors import NotFoundError, PackageError, SignatureError, StorageError, UsageError
from marship.trust import vault
from marship.trust.keys import PrivateKey
from marship.trust.policy import Trust
from marship.trust.signature import sign
from signed import make_key, trusting, write


@pytest.fixture
def store(tmp_path: Path, key: PrivateKey) -> Path:
    """A model store with one signed archive, one unsigned, and a text."""
    folder = tmp_path / "store"
    folder.mkdir()
    sign(write(folder / "lin.mar"), key)
    write(folder / "unsigned.mar", model="unsigned")
    (folder / "README.md").touch()
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty vault."""
    folder = tmp_path / "verified"
    vault.open_vault(folder)
    return folder


def names(folder: Path) -> list[str]:
    """What a folder holds, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_a_verified_copy_is_out_of_reach(place: Path, store: Path, trust: Trust) -> None:
    """It is a file of its own in a folder for its owner only."""
    before = (store / "lin.mar").read_bytes()
    assert vault.admit(place, store, "lin.mar", trust, None).contents.model == "lin"
    assert place.stat().st_mode & 0o777 == 0o700
    with (store / "lin.mar").open("r+b") as file:
        file.write(b"evil")
    assert (place / "lin.mar").read_bytes() == before
    assert names(place) == ["lin.mar"]
    vault.dismiss(place)
    assert names(place) == []


def test_what_is_refused_leaves_nothing(place: Path, store: Path, trust: Trust) -> None:
    """Unsigned, altered, not there, no archive, or under another name."""
    for name, kind in (
        ("unsigned.mar", SignatureError),
        ("none.mar", NotFoundError),
        ("README.md", NotFoundError),
    ):
        with pytest.raises(kind):
            vault.admit(place, store, name, trust, None)
    with pytest.raises(SignatureError, match="under the name that was signed, lin, got other"):
        vault.admit(place, store, "lin.mar", trust, "other")
    (store / "lin.mar").write_bytes(b"evil")
    with pytest.raises(PackageError):
        vault.admit(place, store, "lin.mar", trust, None)
    assert names(place) == []


@pytest.mark.parametrize("named", ["lin.mar", " lin.mar,", "lin=lin.mar"])
def test_models_of_the_start_are_verified(
    place: Path, store: Path, trust: Trust, named: str
) -> None:
    """As TorchServe's `load_models` names them; others in the store do not matter."""
    vault.admit_at_start(place, store, named, trust)
    assert names(place) == ["lin.mar"]


@pytest.mark.parametrize("named", ["all", "ALL", "lin.mar,unsigned.mar", "other=lin.mar"])
def test_one_refused_model_refuses_the_start(
    place: Path, store: Path, trust: Trust, named: str
) -> None:
    """All, a list with an unsigned one, and another name for a signed one."""
    with pytest.raises(SignatureError):
        vault.admit_at_start(place, store, named, trust)


@pytest.mark.parametrize("other", ["folder", "x.tar.gz", "x.model"])
def test_all_means_archives_that_can_be_signed(
    place: Path, store: Path, trust: Trust, other: str
) -> None:
    """TorchServe would load these too, and left out they would be missed."""
    (store / "unsigned.mar").unlink()
    vault.admit_at_start(place, store, "all", trust)
    assert names(place) == ["lin.mar"]
    (store / other).mkdir()
    with pytest.raises(UsageError, match=f"must be .mar files, got .*{other}"):
        vault.admit_at_start(place, store, "all", trust)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each archive that was copied."""
    sizes: list[int] = []
    copy = vault._copy

    def noting(reader: BinaryIO, target: Path, most_bytes: int) -> None:
        copy(reader, target, most_bytes)
        if target.suffix == ".mar":
            sizes.append(target.stat().st_size)

    monkeypatch.setattr(vault, "_copy", noting)
    return sizes


@pytest.mark.parametrize("change", [1, 8 << 30, 1 << 40])
def test_an_archive_that_is_too_large_is_not_copied(
    place: Path, store: Path, trust: Trust, written: list[int], change: int
) -> None:
    """A file that is sparse costs nothing, and would fill the home."""
    size = (store / "lin.mar").stat().st_size
    os.truncate(store / "lin.mar", size + change)
    with pytest.raises(SignatureError, match=f"as it was signed, {size:,} bytes, got"):
        vault.admit(place, store, "lin.mar", trust, None)
    assert written == []
    assert names(place) == []


def test_no_more_is_copied_than_was_there(
    place: Path, store: Path, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that grows while it is read is cut at the signed size."""
    path, room = store / "lin.mar", shutil.disk_usage
    size = path.stat().st_size

    def growing(folder: Path) -> Any:
        os.truncate(path, size + (1 << 30))  # its size was looked at, and its bytes come next
        return room(folder)

    monkeypatch.setattr(shutil, "disk_usage", growing)
    vault.admit(place, store, "lin.mar", trust, None)
    assert (place / "lin.mar").stat().st_size == size


def test_a_size_that_no_signature_states_has_a_bound(
    place: Path, store: Path, tmp_path: Path, written: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSF's states none: a number bounds it, and the free space."""
    key = make_key(tmp_path, "oms", openssf=True)
    trust = trusting(tmp_path / "curves", key)
    sign(store / "lin.mar", key)
    size = (store / "lin.mar").stat().st_size
    monkeypatch.setattr(vault, "MOST_UNSTATED_BYTES", size - 1)
    with pytest.raises(PackageError, match=f"at most {size - 1:,} bytes"):
        vault.admit(place, store, "lin.mar", trust, None)
    monkeypatch.setattr(vault, "MOST_UNSTATED_BYTES", 1 << 60)
    os.truncate(store / "lin.mar", 1 << 42)
    with pytest.raises(StorageError, match=r"must fit into the server's home"):
        vault.admit(place, store, "lin.mar", trust, None)
    assert written == []


@pytest.mark.parametrize("name", ["lin.mar", "lin.mar.sig"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "link to a device"])
def test_what_is_no_file_is_not_waited_for(
    place: Path, store: Path, trust: Trust, name: str, kind: str
) -> None:
    """A pipe that nobody writes to, and a device without an end."""
    path = store / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises((SignatureError, NotFoundError)):
        vault.admit(place, store, "lin.mar", trust, None)
    with pytest.raises((SignatureError, UsageError, PackageError)):
        trust.verify(store / "lin.mar")
    assert names(place) == []


def test_an_endless_signature_is_refused(place: Path, store: Path, trust: Trust) -> None:
    """Sparse, too: no more of it is copied than a signature may have."""
    os.truncate(store / "lin.mar.sig", 1 << 40)
    with pytest.raises(SignatureError, match="must be a whole signature"):
        vault.admit(place, store, "lin.mar", trust, None)
    assert names(place) == []
