"""Files and folders that nobody but their owner can change, whatever way leads to them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from marship.errors import UsageError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check(what: str, *paths: Path) -> None:
    """Refuse what others may write to, or exchange by way of a folder above it or of a link.

    Args:
        what: What the paths are, for the error.
        paths: They must exist.

    Raises:
        UsageError: Others may, or a path leads nowhere.
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
    """All that is passed from the root to a path: folders, links, and where those lead."""
    end = path.absolute()
    for place in (*reversed(end.parents), end):
        yield place
        if place.is_symlink():
            yield from _way(place.parent / place.readlink())


def _check_place(what: str, place: Path, *, is_end: bool) -> None:
    status = place.stat()
    # in a folder such as /tmp everybody makes files, and removes none but their own
    is_shared = not is_end and status.st_mode & stat.S_ISVTX
    if status.st_mode & _OTHERS_WRITE and not is_shared:
        raise UsageError(
            f"{what} must be writable by its owner alone, got {place} of mode "
            f"{stat.S_IMODE(status.st_mode):04o}. Run: chmod go-w {place}"
        )
    for owner in (place.lstat().st_uid, status.st_uid):  # a link's, and of what it leads to
        if owner not in (0, os.geteuid()):
            raise UsageError(
                f"{what} must belong to you or to root, got {place} of user {owner}. "
                f"Run: chown -h {os.geteuid()} {place}"
            )
