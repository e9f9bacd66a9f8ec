"""The vault holds verified copies only, and what is done to the store later does not reach them."""

from pathlib import Path

import pytest

from marship.errors import NotFoundError, PackageError, SignatureError, UsageError
from marship.trust import vault
from marship.trust.keys import PrivateKey
from marship.trust.policy import Trust
from marship.trust.signature import sign
from signed import write


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
