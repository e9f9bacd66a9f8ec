"""Whoever can change a file, or put another in its place, by any way, is found."""

import os
from pathlib import Path

import pytest

from marship.errors import UsageError
from marship.trust import ownership

STRANGER = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file that nobody else can change."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    (folder / "a.pem").touch(mode=0o644)
    return folder / "a.pem"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody can change."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def refused(path: Path, fault: str) -> None:
    """The path is refused for this reason, in one line."""
    with pytest.raises(UsageError, match=f"^the key must {fault}") as caught:
        ownership.check("the key", path)
    assert "\n" not in str(caught.value)


def test_what_is_ours_passes(key: Path) -> None:
    """Also by a link that lies where nobody else makes one, and by a relative path."""
    link = key.with_name("link.pem")
    link.symlink_to("../keys/a.pem")
    ownership.check("the key", key, link, key.parent, Path(os.path.relpath(key)))


def test_a_link_through_a_folder_of_everybody(key: Path, shared: Path) -> None:
    """Its end is ours, and others can still exchange it: the first link, or one on the way."""
    fault = rf"be writable .* chmod go-w {shared}$"
    (shared / "a.pem").symlink_to(key)
    refused(shared / "a.pem", fault)
    link = key.with_name("link.pem")
    link.symlink_to(shared / "a.pem")
    refused(link, fault)
    (shared / "folder").symlink_to(key.parent)
    refused(shared / "folder" / "a.pem", fault)


def test_a_sticky_folder_above(key: Path, shared: Path) -> None:
    """There, as in /tmp, others remove nothing of ours; but a trusted folder may not be one."""
    shared.chmod(0o1777)
    moved = key.parent.rename(shared / "keys")
    ownership.check("the key", moved / "a.pem")
    moved.chmod(0o1777)
    refused(moved, f"be writable by its owner alone, got {moved} of mode 1777")


@AS_ROOT
def test_what_belongs_to_somebody_else(key: Path, shared: Path) -> None:
    """The file, a folder above, or a link in a sticky folder, which its owner can exchange."""
    for place in (key, key.parent):
        os.chown(place, STRANGER, -1)
        refused(key, f"belong to you or to root, got {place} of user {STRANGER}")
        os.chown(place, 0, -1)
    shared.chmod(0o1777)
    link = shared / "a.pem"
    link.symlink_to(key)
    ownership.check("the key", link)
    os.lchown(link, STRANGER, -1)
    refused(link, f"belong to you or to root, got {link} of user {STRANGER}")


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    """No such file, a link to none, and a link to itself."""
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in [("none", "No such"), ("gone", "No such"), ("loop", "Too many levels")]:
        refused(tmp_path / name, f"be there, got {tmp_path / name}: {reason}")
