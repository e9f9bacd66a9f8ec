"""Checks that files and folders, and all paths to them, are writable by their owner only."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from marship.errors import UsageError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check(what: str, *paths: Path) -> None:
    """Reject paths that other users can write to, or replace through a parent folder or a link.

    Args:
        what: A description of the paths, for the error.
        paths: They must exist.

    Raises:
        UsageError: Others can, or a path does not exist.
    """
    for path in paths:
        try:
            for place in _way(path):
                _check_place(what, place, is_end=place.samefile(path))
        except OSError as error:
            raise UsageError(
                f"{what} must be there, got {path}: {error.strerror}. Put it there, or remove "
                "what names it."
            ) from error


def _way(path: Path) -> Iterator[Path]:
    """All components from the root to a path: folders, links, and the links' targets."""
    end = path.absolute()
    for place in (*reversed(end.parents), end):
        yield place
        if place.is_symlink():
            yield from _way(place.parent / place.readlink())


def _check_place(what: str, place: Path, *, is_end: bool) -> None:
    status = place.stat()
    # in a sticky folder such as /tmp everyone can create files, but only remove their own
    is_shared = not is_end and status.st_mode & stat.S_ISVTX
    if status.st_mode & _OTHERS_WRITE and not is_shared:
        raise UsageError(
            f"{what} must be writable by its owner alone, got {place} of mode "
            f"{stat.S_IMODE(status.st_mode):04o}. Run: chmod go-w {place}"
        )
    for owner in (place.lstat().st_uid, status.st_uid):  # of a link, and of its target
        if owner not in (0, os.geteuid()):
            raise UsageError(
                f"{what} must belong to you or to root, got {place} of user {owner}. "
                f"Run: chown -h {os.geteuid()} {place}"
            )
